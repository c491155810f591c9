// SPDX-License-Identifier: GPL-2.0
/*
 * The state of the device: its references, the latch for a host that cannot be trusted any more,
 * wake-ups, and the start of its works.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/printk.h>

#include "vmsrs.h"

/**
 * vmsrs_device_wake_all() - wake all waiting threads, which look at the device's state then
 * @dev: the device
 */
void vmsrs_device_wake_all(struct vmsrs_device *dev)
{
	wake_up_all(&dev->control.wait);
	wake_up_all(&dev->pool.wait);
	wake_up_all(&dev->batch.wait);
	wake_up_all(&dev->reports.wait);
	vmsrs_lock_wake_all();
}

/**
 * vmsrs_device_fail() - stop using a host that broke the protocol or a timeout
 * @dev: the device
 * @format: why, for the kernel's log
 *
 * From then on pages can be read but not written.
 *
 * Context: any except hard interrupts.
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
	pr_err("the host cannot be trusted any more, writes are refused from now on: %pV\n",
	       &reason);
	va_end(arguments);
	vmsrs_device_wake_all(dev);
}

/**
 * vmsrs_device_put() - drop a reference
 * @dev: the device
 */
void vmsrs_device_put(struct vmsrs_device *dev)
{
	kref_put(&dev->ref, dev->release);
}

/**
 * vmsrs_device_kick_seal_soon() - have the batch sent after VMSRS_BATCH_DELAY
 * @dev: the device
 */
void vmsrs_device_kick_seal_soon(struct vmsrs_device *dev)
{
	queue_delayed_work(dev->wq, &dev->seal_work, VMSRS_BATCH_DELAY);
}

/**
 * vmsrs_device_kick_seal() - have the batch sent now
 * @dev: the device
 *
 * Context: any.
 */
void vmsrs_device_kick_seal(struct vmsrs_device *dev)
{
	mod_delayed_work(dev->wq, &dev->seal_work, 0);
}

/**
 * vmsrs_device_kick_reports_soon() - have the reports sent after VMSRS_REPORT_DELAY
 * @dev: the device
 */
void vmsrs_device_kick_reports_soon(struct vmsrs_device *dev)
{
	queue_delayed_work(dev->wq, &dev->report_work, VMSRS_REPORT_DELAY);
}

/**
 * vmsrs_device_kick_reports() - have the reports sent now
 * @dev: the device
 *
 * Context: any.
 */
void vmsrs_device_kick_reports(struct vmsrs_device *dev)
{
	mod_delayed_work(dev->wq, &dev->report_work, 0);
}

/**
 * vmsrs_device_start_watch() - have the watch run, unless it is due already
 * @dev: the device
 */
void vmsrs_device_start_watch(struct vmsrs_device *dev)
{
	queue_delayed_work(dev->wq, &dev->watch, VMSRS_WATCH_PERIOD);
}
