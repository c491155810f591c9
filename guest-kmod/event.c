// SPDX-License-Identifier: GPL-2.0
/*
 * The event queue: messages that the host sends on its own initiative. Once the device runs,
 * only a work uses it, since some events need locks.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/ratelimit.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "compat.h"
#include "vmsrs.h"

/**
 * vmsrs_event_free() - free the buffers
 * @dev: the device, after its reset
 */
void vmsrs_event_free(struct vmsrs_device *dev)
{
	kfree(dev->events);
}

static bool give_buffer(struct virtqueue *vq, struct vmsrs_event *event)
{
	struct scatterlist sg;

	sg_init_one(&sg, event, sizeof(*event));
	return !virtqueue_add_inbuf(vq, &sg, 1, event, GFP_KERNEL);
}

/**
 * vmsrs_event_start() - give the host its first buffers
 * @dev: the device
 *
 * The host uses none before the kick, and there are no callbacks before a buffer is used.
 */
void vmsrs_event_start(struct vmsrs_device *dev)
{
	u32 i;

	if (!dev->event_vq)
		return;
	for (i = 0; i < VMSRS_EVENT_BUFFERS; i++)
		if (!give_buffer(dev->event_vq, &dev->events[i]))
			break;
	virtqueue_kick(dev->event_vq);
}

static void handle_event(struct vmsrs_device *dev, const struct vmsrs_event *event)
{
	switch (event->kind) {
	case VMSRS_EVENT_SEALED_WRITE:
		pr_warn_ratelimited("incident %llu: write to vault frame %u stopped, address %#llx, instruction %#llx, CPU %d\n",
				    event->incident, event->frame, event->address,
				    event->instruction, (int)event->vcpu);
		break;
	case VMSRS_EVENT_DAMAGE:
		pr_err_ratelimited("incident %llu: the content of the page at %#llx is lost\n",
				   event->incident, event->address);
		vmsrs_page_damaged(dev, event->address, event->frame);
		break;
	default:
		pr_warn_ratelimited("unknown event %u\n", event->kind);
	}
}

static void event_work(struct work_struct *work)
{
	struct vmsrs_device *dev = container_of(work, struct vmsrs_device, event_work);
	struct virtqueue *vq = dev->event_vq;
	struct vmsrs_event *event;
	unsigned int used;

	do {
		virtqueue_disable_cb(vq);
		while ((event = virtqueue_get_buf(vq, &used))) {
			if (used == sizeof(*event))
				handle_event(dev, event);
			else
				pr_warn_ratelimited("event of %u bytes\n", used);
			if (!give_buffer(vq, event))
				break;
		}
		virtqueue_kick(vq);
	} while (!virtqueue_enable_cb(vq));
}

/**
 * vmsrs_event_init() - allocate the buffers
 * @dev: the device
 *
 * Return: 0 or -ENOMEM.
 */
int vmsrs_event_init(struct vmsrs_device *dev)
{
	spin_lock_init(&dev->event_lock);
	INIT_WORK(&dev->event_work, event_work);
	dev->events = kcalloc(VMSRS_EVENT_BUFFERS, sizeof(*dev->events), GFP_KERNEL);
	return dev->events ? 0 : -ENOMEM;
}

/**
 * vmsrs_event_done() - callback of the virtqueue: the host used buffers
 * @vq: the virtqueue
 *
 * Context: hard interrupt.
 */
void vmsrs_event_done(struct virtqueue *vq)
{
	struct vmsrs_device *dev = vq->vdev->priv;
	unsigned long flags;

	spin_lock_irqsave(&dev->event_lock, flags);
	if (!dev->events_stopped)
		queue_work(dev->wq, &dev->event_work);
	spin_unlock_irqrestore(&dev->event_lock, flags);
}

/**
 * vmsrs_event_stop() - stop handling events
 * @dev: the device
 */
void vmsrs_event_stop(struct vmsrs_device *dev)
{
	spin_lock_irq(&dev->event_lock);
	dev->events_stopped = true;
	spin_unlock_irq(&dev->event_lock);
	cancel_work_sync(&dev->event_work);
}
