// SPDX-License-Identifier: GPL-2.0
/*
 * The state of the device: its references, the latch for a host that cannot be trusted any more,
 * and its works.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/printk.h>

#include "vmsrs.h"

/* Everybody who waits looks at dev->broken when woken. */
void vmsrs_device_wake_all(struct vmsrs_device *dev)
{
	wake_up_all(&dev->control.wait);
	wake_up_all(&dev->pool.wait);
	wake_up_all(&dev->batch.wait);
	vmsrs_lock_wake_all();
}

/*
 * Stops using a host that broke the protocol or a timeout. From then on pages can be read, but
 * nothing can be written. Context: any but hard interrupts.
 */
void vmsrs_device_fail(struct vmsrs_device *dev, const char *format, ...)
{
	struct va_format reason;
	va_list arguments;

	if (xchg(&dev->broken, true))
		return;
	va_start(arguments, format);
	reason.fmt = format;
	reason.va = &arguments;
	pr_err("the host can't be relied on any more, writes are refused from now on: %pV\n",
	       &reason);
	va_end(arguments);
	vmsrs_device_wake_all(dev);
}

void vmsrs_device_put(struct vmsrs_device *dev)
{
	kref_put(&dev->ref, dev->release);
}

void vmsrs_device_kick_host_soon(struct vmsrs_device *dev)
{
	queue_delayed_work(dev->wq, &dev->host_work, VMSRS_BATCH_DELAY);
}

/* Any context. */
void vmsrs_device_kick_host(struct vmsrs_device *dev)
{
	mod_delayed_work(dev->wq, &dev->host_work, 0);
}

/* Queues a run of the watch, unless one is due. */
void vmsrs_device_start_watch(struct vmsrs_device *dev)
{
	queue_delayed_work(dev->wq, &dev->watch, VMSRS_WATCH_PERIOD);
}
