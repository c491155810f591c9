// SPDX-License-Identifier: GPL-2.0
/*
 * The control queue: one message at a time, each answered within VMSRS_CONTROL_TIMEOUT.
 *
 * The buffers belong to the driver while control.lock is held and no message is out. A host that
 * misses the timeout still has them, so nothing is sent after that; they are freed after the
 * device's reset.
 *
 * Most replies are there when the host returns from the notification, or a moment later. So the
 * sender looks for its reply first, and asks for an interrupt only when it has to sleep.
 */
#include <linux/ktime.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "compat.h"
#include "vmsrs.h"

/* About what an interrupt and the sender's way to sleep and back cost. */
#define CONTROL_POLL_NS		(20 * NSEC_PER_USEC)

/**
 * vmsrs_control_init() - allocate the buffers
 * @dev: the device
 *
 * Return: 0 or -ENOMEM.
 */
int vmsrs_control_init(struct vmsrs_device *dev)
{
	struct vmsrs_control *control = &dev->control;

	mutex_init(&control->lock);
	spin_lock_init(&control->vq_lock);
	init_waitqueue_head(&control->wait);
	control->request = kmalloc(VMSRS_MESSAGE_BYTES_MAX, GFP_KERNEL);
	control->reply = kmalloc(VMSRS_MESSAGE_BYTES_MAX, GFP_KERNEL);
	if (!control->request || !control->reply) {
		vmsrs_control_free(dev);
		return -ENOMEM;
	}
	return 0;
}

/**
 * vmsrs_control_free() - free the buffers
 * @dev: the device, after its reset
 */
void vmsrs_control_free(struct vmsrs_device *dev)
{
	kfree(dev->control.request);
	kfree(dev->control.reply);
}

/* Takes the reply if it is there. vq_lock is held. */
static void take_reply(struct vmsrs_control *control, struct virtqueue *vq)
{
	unsigned int used;

	while (virtqueue_get_buf(vq, &used)) {
		control->used = used;
		control->done = true;
	}
}

/**
 * vmsrs_control_done() - callback of the virtqueue: the host used a buffer
 * @vq: the virtqueue
 *
 * Context: hard interrupt.
 */
void vmsrs_control_done(struct virtqueue *vq)
{
	struct vmsrs_device *dev = vq->vdev->priv;
	struct vmsrs_control *control = &dev->control;
	unsigned long flags;

	spin_lock_irqsave(&control->vq_lock, flags);
	take_reply(control, vq);
	spin_unlock_irqrestore(&control->vq_lock, flags);
	wake_up(&control->wait);
}

/**
 * vmsrs_control_begin() - start a message
 * @dev: the device
 *
 * Return: where the message's payload goes, or an ERR_PTR(). Unless it is an error,
 * vmsrs_control_end() must follow.
 */
void *vmsrs_control_begin(struct vmsrs_device *dev)
{
	mutex_lock(&dev->control.lock);
	if (vmsrs_device_broken(dev)) {
		mutex_unlock(&dev->control.lock);
		return ERR_PTR(-ENODEV);
	}
	return dev->control.request + sizeof(struct vmsrs_control_header);
}

/**
 * vmsrs_control_end() - end a message; its reply is not valid any more
 * @dev: the device
 */
void vmsrs_control_end(struct vmsrs_device *dev)
{
	mutex_unlock(&dev->control.lock);
}

static int status_error(u32 status)
{
	switch (status) {
	case VMSRS_STATUS_OK:
		return 0;
	case VMSRS_STATUS_MALFORMED:
		return -EINVAL;
	case VMSRS_STATUS_UNKNOWN:
		return -EOPNOTSUPP;
	case VMSRS_STATUS_NO_SPACE:
		return -ENOSPC;
	case VMSRS_STATUS_NOT_FOUND:
		return -ENOENT;
	case VMSRS_STATUS_NOT_OWNER:
		return -EPERM;
	case VMSRS_STATUS_STALE:
		return -ESTALE;
	default:
		return -EIO;
	}
}

static bool control_done(struct vmsrs_control *control)
{
	bool done;

	spin_lock_irq(&control->vq_lock);
	done = control->done;
	spin_unlock_irq(&control->vq_lock);
	return done;
}

/* Looks for the reply for a moment. */
static bool poll_reply(struct vmsrs_control *control)
{
	u64 end = ktime_get_ns() + CONTROL_POLL_NS;
	bool done;

	for (;;) {
		spin_lock_irq(&control->vq_lock);
		take_reply(control, control->vq);
		done = control->done;
		spin_unlock_irq(&control->vq_lock);
		if (done || need_resched() || ktime_get_ns() >= end)
			return done;
		cpu_relax();
	}
}

/* Sleeps until the reply is there, the device is broken, or VMSRS_CONTROL_TIMEOUT has passed. */
static void sleep_for_reply(struct vmsrs_device *dev)
{
	struct vmsrs_control *control = &dev->control;

	spin_lock_irq(&control->vq_lock);
	/* One that comes from here on interrupts. */
	if (!virtqueue_enable_cb(control->vq))
		take_reply(control, control->vq);
	spin_unlock_irq(&control->vq_lock);
	wait_event_timeout(control->wait, control_done(control) || vmsrs_device_broken(dev),
			   VMSRS_CONTROL_TIMEOUT);
}

/**
 * vmsrs_control_exchange() - send the message and wait for its reply
 * @dev: the device
 * @kind: one of VMSRS_MESSAGE_*
 * @length: bytes of payload, written where vmsrs_control_begin() returned
 * @reply: payload of the reply, valid until vmsrs_control_end()
 * @reply_length: bytes of it
 *
 * Not interruptible, since the host has the buffers until it answers: after a waiter that left
 * early nothing could be sent any more. The timeout bounds the wait.
 *
 * Return: 0; -ENODEV: the host is broken; otherwise the host's refusal, see status_error().
 */
int vmsrs_control_exchange(struct vmsrs_device *dev, u32 kind, u32 length, const void **reply,
			   u32 *reply_length)
{
	struct vmsrs_control *control = &dev->control;
	struct vmsrs_control_header *header = control->request;
	const struct vmsrs_reply_header *answer = control->reply;
	struct scatterlist out, in, *sgs[] = { &out, &in };
	int error;

	lockdep_assert_held(&control->lock);
	header->kind = kind;
	header->length = length;
	sg_init_one(&out, control->request, sizeof(*header) + length);
	sg_init_one(&in, control->reply, VMSRS_MESSAGE_BYTES_MAX);

	spin_lock_irq(&control->vq_lock);
	control->done = false;
	virtqueue_disable_cb(control->vq);
	error = virtqueue_add_sgs(control->vq, sgs, 1, 1, control, GFP_ATOMIC);
	if (!error)
		virtqueue_kick(control->vq);
	spin_unlock_irq(&control->vq_lock);
	if (error) {
		vmsrs_device_fail(dev, "cannot queue message %u (%d)", kind,
				  error);
		return -ENODEV;
	}
	if (!poll_reply(control))
		sleep_for_reply(dev);
	if (vmsrs_device_broken(dev))
		return -ENODEV;
	if (!control_done(control)) {
		vmsrs_device_fail(dev, "no answer to message %u within %u s", kind,
				  VMSRS_CONTROL_TIMEOUT / HZ);
		return -ENODEV;
	}
	if (control->used < sizeof(*answer) || control->used > VMSRS_MESSAGE_BYTES_MAX ||
	    answer->length > control->used - sizeof(*answer)) {
		vmsrs_device_fail(dev, "malformed answer to message %u", kind);
		return -ENODEV;
	}
	if (answer->status != VMSRS_STATUS_OK)
		return status_error(answer->status);
	*reply = answer + 1;
	*reply_length = answer->length;
	return 0;
}

/**
 * vmsrs_control_call() - send a message of fixed size whose reply has a fixed size
 * @dev: the device
 * @kind: one of VMSRS_MESSAGE_*
 * @payload: payload of the message
 * @length: bytes of it
 * @reply: where the reply's payload is copied to
 * @reply_length: bytes of it
 *
 * Return: as vmsrs_control_exchange(). A reply of another length breaks the device.
 */
int vmsrs_control_call(struct vmsrs_device *dev, u32 kind, const void *payload, u32 length,
		       void *reply, u32 reply_length)
{
	const void *bytes;
	u32 got;
	void *request;
	int error;

	request = vmsrs_control_begin(dev);
	if (IS_ERR(request))
		return PTR_ERR(request);
	memcpy(request, payload, length);
	error = vmsrs_control_exchange(dev, kind, length, &bytes, &got);
	if (!error) {
		if (got == reply_length) {
			memcpy(reply, bytes, reply_length);
		} else {
			vmsrs_device_fail(dev, "answer of %u bytes to message %u", got, kind);
			error = -ENODEV;
		}
	}
	vmsrs_control_end(dev);
	return error;
}

/**
 * vmsrs_control_unexpected() - a refusal that the driver cannot explain
 * @dev: the device
 * @kind: the message that was refused
 * @error: what vmsrs_control_call() has returned for it
 *
 * The host refuses only malformed messages that way: it and the driver disagree about the state.
 *
 * Return: @error if it tells of something else, or -ENODEV: the device is broken from here on.
 */
long vmsrs_control_unexpected(struct vmsrs_device *dev, u32 kind, int error)
{
	if (error == -ENODEV || error == -ENOMEM)
		return error;
	vmsrs_device_fail(dev, "message %u refused (%d)", kind, error);
	return -ENODEV;
}
