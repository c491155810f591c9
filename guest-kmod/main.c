// SPDX-License-Identifier: GPL-2.0
/* The module and the virtio driver: probe and remove. */
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "compat.h"
#include "vmsrs.h"

#if !IS_ENABLED(CONFIG_X86_64)
#error "VMSRS is for x86-64"
#endif

/* There is one /dev/vmsrs. */
static atomic_t device_count = ATOMIC_INIT(0);

static void vmsrs_device_release(struct kref *ref)
{
	struct vmsrs_device *dev = container_of(ref, struct vmsrs_device, ref);
	u32 i;

	/* destroy_workqueue() does not wait for works that are not due yet. */
	cancel_delayed_work_sync(&dev->watch);
	cancel_delayed_work_sync(&dev->host_work);
	destroy_workqueue(dev->wq);
	vmsrs_requests_free(dev);
	vmsrs_host_free(dev);
	for (i = 0; i < VMSRS_MAX_APPS; i++)
		vmsrs_app_free(dev->apps[i]);
	vmsrs_inode_free(dev->inode);
	vmsrs_event_free(dev);
	vmsrs_control_free(dev);
	vmsrs_pool_free(dev);
	ida_destroy(&dev->slots);
	cleanup_srcu_struct(&dev->srcu);
	kfree(dev);
}

static int vmsrs_read_config(struct vmsrs_device *dev)
{
	struct virtio_device *vdev = dev->vdev;
	struct vmsrs_device_config *config = &dev->config;

	config->abi_version = virtio_cread32(vdev, offsetof(struct vmsrs_device_config,
							    abi_version));
	if (config->abi_version != VMSRS_ABI_VERSION) {
		dev_err(&vdev->dev, "the device speaks version %u, this driver %u\n",
			config->abi_version, VMSRS_ABI_VERSION);
		return -EPROTO;
	}
	config->window_frames = virtio_cread32(vdev, offsetof(struct vmsrs_device_config,
							      window_frames));
	config->pool_frames = virtio_cread32(vdev, offsetof(struct vmsrs_device_config,
							    pool_frames));
	config->batch_records = virtio_cread32(vdev, offsetof(struct vmsrs_device_config,
							      batch_records));
	config->tag_base = virtio_cread64(vdev, offsetof(struct vmsrs_device_config, tag_base));
	config->incident_base = virtio_cread64(vdev, offsetof(struct vmsrs_device_config,
							      incident_base));
	if (config->window_frames < 2 || config->window_frames >= VMSRS_DAMAGED_FRAME ||
	    !config->pool_frames || config->pool_frames >= config->window_frames ||
	    !config->batch_records || config->tag_base >= BIT_ULL(62) ||
	    !(config->incident_base & 1)) {
		dev_err(&vdev->dev, "the device's configuration is invalid\n");
		return -EPROTO;
	}
	atomic64_set(&dev->next_tag, max_t(u64, config->tag_base, 1));
	atomic64_set(&dev->next_incident, config->incident_base);
	return 0;
}

/*
 * Maps the window write-back for the driver. That also reserves the memory type, which the
 * processes' page table entries then get under PAT.
 */
static int vmsrs_map_window(struct vmsrs_device *dev)
{
	struct virtio_device *vdev = dev->vdev;
	struct virtio_shm_region region;
	u64 length = (u64)dev->config.window_frames * PAGE_SIZE;

	if (!virtio_get_shm_region(vdev, &region, VMSRS_SHM_WINDOW)) {
		dev_err(&vdev->dev, "the device has no window\n");
		return -ENXIO;
	}
	if (!PAGE_ALIGNED(region.addr) || region.len < length) {
		dev_err(&vdev->dev, "the window at %#llx is %llu bytes long, %llu needed\n",
			region.addr, region.len, length);
		return -EPROTO;
	}
	if (!request_mem_region(region.addr, length, "vmsrs window")) {
		dev_err(&vdev->dev, "the window at %#llx overlaps something else\n", region.addr);
		return -EBUSY;
	}
	dev->window = memremap(region.addr, length, MEMREMAP_WB);
	if (!dev->window) {
		release_mem_region(region.addr, length);
		return -ENOMEM;
	}
	dev->window_phys = region.addr;
	return 0;
}

static void vmsrs_unmap_window(struct vmsrs_device *dev)
{
	memunmap(dev->window);
	release_mem_region(dev->window_phys, (u64)dev->config.window_frames * PAGE_SIZE);
}

static int vmsrs_make_queues(struct vmsrs_device *dev)
{
	static const struct vmsrs_queue queues[VMSRS_QUEUE_COUNT] = {
		[VMSRS_QUEUE_CONTROL] = { "control", vmsrs_control_done },
		[VMSRS_QUEUE_EVENT] = { "event", vmsrs_event_done },
	};
	bool events = virtio_has_feature(dev->vdev, VMSRS_FEATURE_EVENTS);
	struct virtqueue *vqs[VMSRS_QUEUE_COUNT] = { };
	int error;

	BUILD_BUG_ON(VMSRS_QUEUE_COUNT > VMSRS_QUEUES_MAX);
	error = vmsrs_find_vqs(dev->vdev, events ? VMSRS_QUEUE_COUNT : 1, vqs, queues);
	if (error)
		return error;
	dev->control.vq = vqs[VMSRS_QUEUE_CONTROL];
	dev->event_vq = vqs[VMSRS_QUEUE_EVENT];
	return 0;
}

static int vmsrs_validate(struct virtio_device *vdev)
{
	if (!virtio_has_feature(vdev, VIRTIO_F_VERSION_1)) {
		dev_err(&vdev->dev, "the device is not a virtio 1.x device\n");
		return -ENODEV;
	}
	return 0;
}

static int vmsrs_probe(struct virtio_device *vdev)
{
	struct vmsrs_device *dev;
	int error;

	if (atomic_cmpxchg(&device_count, 0, 1)) {
		dev_err(&vdev->dev, "there already is a VMSRS device\n");
		return -EBUSY;
	}
	dev = kzalloc(sizeof(*dev), GFP_KERNEL);
	if (!dev) {
		error = -ENOMEM;
		goto put_count;
	}
	kref_init(&dev->ref);
	dev->release = vmsrs_device_release;
	dev->vdev = vdev;
	vdev->priv = dev;
	mutex_init(&dev->apps_lock);
	mutex_init(&dev->commit_lock);
	spin_lock_init(&dev->requests_lock);
	hash_init(dev->requests);
	INIT_LIST_HEAD(&dev->failed_requests);
	dev->due_requests = RB_ROOT_CACHED;
	vmsrs_threads_init(dev);
	vmsrs_watch_init(dev);
	vmsrs_host_init(dev);
	error = init_srcu_struct(&dev->srcu);
	if (error)
		goto free_dev;
	error = vmsrs_read_config(dev);
	if (error)
		goto cleanup_srcu;
	error = vmsrs_pool_init(dev);
	if (error)
		goto cleanup_srcu;
	error = vmsrs_control_init(dev);
	if (error)
		goto free_pool;
	error = vmsrs_event_init(dev);
	if (error)
		goto free_control;
	dev->inode = vmsrs_inode_new();
	if (IS_ERR(dev->inode)) {
		error = PTR_ERR(dev->inode);
		goto free_events;
	}
	dev->wq = alloc_workqueue("vmsrs", WQ_UNBOUND, 0);
	if (!dev->wq) {
		error = -ENOMEM;
		goto free_inode;
	}
	error = vmsrs_map_window(dev);
	if (error)
		goto destroy_wq;
	error = vmsrs_make_queues(dev);
	if (error)
		goto unmap_window;
	virtio_device_ready(vdev);
	vmsrs_event_start(dev);
	vmsrs_device_kick_host(dev);

	dev->misc.minor = MISC_DYNAMIC_MINOR;
	dev->misc.name = "vmsrs";
	dev->misc.fops = &vmsrs_fops;
	dev->misc.parent = &vdev->dev;
	error = misc_register(&dev->misc);
	if (error)
		goto reset;
	dev_info(&vdev->dev, "%u frames at %#llx, pool of %u\n", dev->config.window_frames,
		 (u64)dev->window_phys, dev->config.pool_frames);
	return 0;

reset:
	WRITE_ONCE(dev->gone, true);
	WRITE_ONCE(dev->broken, true);
	vmsrs_device_wake_all(dev);
	cancel_delayed_work_sync(&dev->host_work);
	vmsrs_event_stop(dev);
	virtio_reset_device(vdev);
	vdev->config->del_vqs(vdev);
unmap_window:
	vmsrs_unmap_window(dev);
destroy_wq:
	destroy_workqueue(dev->wq);
free_inode:
	vmsrs_inode_free(dev->inode);
free_events:
	vmsrs_event_free(dev);
free_control:
	vmsrs_control_free(dev);
free_pool:
	vmsrs_pool_free(dev);
cleanup_srcu:
	cleanup_srcu_struct(&dev->srcu);
free_dev:
	ida_destroy(&dev->slots);
	vdev->priv = NULL;
	kfree(dev);
put_count:
	atomic_dec(&device_count);
	return error;
}

/* Are there commits that the host has not received? */
static bool work_left(struct vmsrs_device *dev)
{
	bool left;

	spin_lock(&dev->batch.lock);
	left = !list_empty(&dev->batch.records);
	spin_unlock(&dev->batch.lock);
	return left;
}

/*
 * Files may stay open, with their mappings; they keep the structure. After the deregistration
 * the device cannot be opened any more; after `gone` there are no new drafts and commits; after
 * the grace period no fault handler uses the window; after `broken` no message is sent.
 */
static void vmsrs_remove(struct virtio_device *vdev)
{
	struct vmsrs_device *dev = vdev->priv;

	misc_deregister(&dev->misc);
	mutex_lock(&dev->commit_lock);
	WRITE_ONCE(dev->gone, true);
	mutex_unlock(&dev->commit_lock);
	vmsrs_device_wake_all(dev);

	/*
	 * Before the reset, at which the host takes back the frames of drafts: from then on neither
	 * a copy in a fault handler nor a process may write to them.
	 */
	synchronize_srcu(&dev->srcu);
	vmsrs_zap_all(dev);

	/* What programs were told is committed has to reach the host. */
	do {
		vmsrs_device_kick_host(dev);
		flush_delayed_work(&dev->host_work);
	} while (!vmsrs_device_broken(dev) && work_left(dev));
	smp_wmb(); /* a thread that sees broken for this reason sees gone: it names the error */
	WRITE_ONCE(dev->broken, true);
	vmsrs_device_wake_all(dev);

	vmsrs_event_stop(dev);
	/* A sender that saw the device unbroken is done when its lock is free. */
	mutex_lock(&dev->control.lock);
	virtio_reset_device(vdev);
	vdev->config->del_vqs(vdev);
	dev->control.vq = NULL;
	dev->event_vq = NULL;
	dev->vdev = NULL;
	mutex_unlock(&dev->control.lock);

	vmsrs_unmap_window(dev);
	vdev->priv = NULL;
	vmsrs_device_put(dev);
	/* The device can be bound again while files of it are still open. */
	atomic_dec(&device_count);
}

#ifdef CONFIG_PM_SLEEP
/* A reset loses the granted frames with the drafts in them, so the device can't be suspended. */
static int vmsrs_freeze(struct virtio_device *vdev)
{
	dev_err(&vdev->dev, "suspend is not supported\n");
	return -EOPNOTSUPP;
}
#endif

static const struct virtio_device_id vmsrs_ids[] = {
	{ VMSRS_DEVICE_ID, VIRTIO_DEV_ANY_ID },
	{ }
};
MODULE_DEVICE_TABLE(virtio, vmsrs_ids);

static const unsigned int vmsrs_features[] = {
	VMSRS_FEATURE_EVENTS,
};

static struct virtio_driver vmsrs_driver = {
	.driver.name = KBUILD_MODNAME,
	.driver.owner = THIS_MODULE,
	.id_table = vmsrs_ids,
	.feature_table = vmsrs_features,
	.feature_table_size = ARRAY_SIZE(vmsrs_features),
	.validate = vmsrs_validate,
	.probe = vmsrs_probe,
	.remove = vmsrs_remove,
#ifdef CONFIG_PM_SLEEP
	.freeze = vmsrs_freeze,
#endif
};

static int __init vmsrs_init(void)
{
	int error;

	BUILD_BUG_ON(VMSRS_PAGE_SIZE != PAGE_SIZE);
	vmsrs_locks_init();
	error = vmsrs_draft_cache_init();
	if (error)
		return error;
	error = register_virtio_driver(&vmsrs_driver);
	if (error)
		vmsrs_draft_cache_exit();
	return error;
}

static void __exit vmsrs_exit(void)
{
	unregister_virtio_driver(&vmsrs_driver);
	vmsrs_draft_cache_exit();
}

module_init(vmsrs_init);
module_exit(vmsrs_exit);

MODULE_DESCRIPTION("VMSRS: self-recovery of server programs in a virtual machine");
MODULE_AUTHOR("The VMSRS authors");
MODULE_VERSION("0.1.0");
MODULE_LICENSE("GPL");
