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
	cancel_delayed_work_sync(&dev->seal_work);
	cancel_delayed_work_sync(&dev->report_work);
	destroy_workqueue(dev->wq);
	vmsrs_requests_free(dev);
	vmsrs_reports_free(dev);
	vmsrs_batch_free(dev);
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
	config->vault_frames = virtio_cread32(vdev, offsetof(struct vmsrs_device_config,
							     vault_frames));
	config->pool_frames = virtio_cread32(vdev, offsetof(struct vmsrs_device_config,
							    pool_frames));
	config->batch_records = virtio_cread32(vdev, offsetof(struct vmsrs_device_config,
							      batch_records));
	config->tag_base = virtio_cread64(vdev, offsetof(struct vmsrs_device_config, tag_base));
	config->incident_base = virtio_cread64(vdev, offsetof(struct vmsrs_device_config,
							      incident_base));
	if (config->vault_frames < 2 || config->vault_frames > VMSRS_MAX_FRAMES ||
	    !config->pool_frames || config->pool_frames > VMSRS_MAX_FRAMES ||
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
 * Maps a region write-back for the driver. That also reserves the memory type, which the processes'
 * page table entries then get under PAT.
 */
static int map_region(struct vmsrs_device *dev, u8 id, const char *name, u32 frames,
		      struct vmsrs_region *region)
{
	u64 length = (u64)frames * PAGE_SIZE;
	struct virtio_device *vdev = dev->vdev;
	struct virtio_shm_region shm;

	if (!virtio_get_shm_region(vdev, &shm, id)) {
		dev_err(&vdev->dev, "the device has no %s\n", name);
		return -ENXIO;
	}
	if (!PAGE_ALIGNED(shm.addr) || shm.len < length) {
		dev_err(&vdev->dev, "the %s at %#llx is %llu bytes long, %llu needed\n", name,
			shm.addr, shm.len, length);
		return -EPROTO;
	}
	if (!request_mem_region(shm.addr, length, id == VMSRS_SHM_POOL ? "vmsrs pool" :
									 "vmsrs vault")) {
		dev_err(&vdev->dev, "the %s at %#llx overlaps something else\n", name, shm.addr);
		return -EBUSY;
	}
	region->base = memremap(shm.addr, length, MEMREMAP_WB);
	if (!region->base) {
		release_mem_region(shm.addr, length);
		return -ENOMEM;
	}
	region->phys = shm.addr;
	region->length = length;
	return 0;
}

static void unmap_region(struct vmsrs_region *region)
{
	memunmap(region->base);
	release_mem_region(region->phys, region->length);
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
	u32 i;

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
	init_rwsem(&dev->commit_lock);
	for (i = 0; i < ARRAY_SIZE(dev->request_locks); i++)
		mutex_init(&dev->request_locks[i]);
	mutex_init(&dev->release_lock);
	spin_lock_init(&dev->requests_lock);
	hash_init(dev->requests);
	INIT_LIST_HEAD(&dev->failed_requests);
	INIT_LIST_HEAD(&dev->spare_requests);
	dev->due_requests = RB_ROOT_CACHED;
	vmsrs_threads_init(dev);
	vmsrs_watch_init(dev);
	vmsrs_deletions_init(dev);
	vmsrs_leases_init(dev);
	error = init_srcu_struct(&dev->srcu);
	if (error)
		goto free_dev;
	error = vmsrs_read_config(dev);
	if (error)
		goto cleanup_srcu;
	error = vmsrs_batch_init(dev);
	if (error)
		goto free_batch;
	error = vmsrs_reports_init(dev);
	if (error)
		goto free_reports;
	error = vmsrs_pool_init(dev);
	if (error)
		goto free_reports;
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
	error = map_region(dev, VMSRS_SHM_POOL, "pool", dev->config.pool_frames,
			   &dev->pool_region);
	if (error)
		goto destroy_wq;
	error = map_region(dev, VMSRS_SHM_VAULT, "vault", dev->config.vault_frames,
			   &dev->vault_region);
	if (error)
		goto unmap_pool;
	vmsrs_pool_touch(dev);
	error = vmsrs_make_queues(dev);
	if (error)
		goto unmap_vault;
	virtio_device_ready(vdev);
	vmsrs_event_start(dev);

	dev->misc.minor = MISC_DYNAMIC_MINOR;
	dev->misc.name = "vmsrs";
	dev->misc.fops = &vmsrs_fops;
	dev->misc.parent = &vdev->dev;
	error = misc_register(&dev->misc);
	if (error)
		goto reset;
	dev_info(&vdev->dev, "vault of %u frames at %#llx, pool of %u at %#llx\n",
		 dev->config.vault_frames, (u64)dev->vault_region.phys, dev->config.pool_frames,
		 (u64)dev->pool_region.phys);
	return 0;

reset:
	WRITE_ONCE(dev->gone, true);
	WRITE_ONCE(dev->broken, true);
	vmsrs_device_wake_all(dev);
	cancel_delayed_work_sync(&dev->seal_work);
	cancel_delayed_work_sync(&dev->report_work);
	vmsrs_event_stop(dev);
	virtio_reset_device(vdev);
	vdev->config->del_vqs(vdev);
unmap_vault:
	unmap_region(&dev->vault_region);
unmap_pool:
	unmap_region(&dev->pool_region);
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
free_reports:
	vmsrs_reports_free(dev);
free_batch:
	vmsrs_batch_free(dev);
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
	left = dev->batch.queued || dev->batch.sent_count;
	spin_unlock(&dev->batch.lock);
	return left || vmsrs_batch_deletes(dev);
}

/*
 * Files may stay open, with their mappings; they keep the structure. After the deregistration the
 * device cannot be opened any more; after `gone` there are no new drafts and commits; after the
 * grace period no fault handler uses pool and vault; after the works have ended no process does;
 * after `broken` no message is sent.
 */
static void vmsrs_remove(struct virtio_device *vdev)
{
	struct vmsrs_device *dev = vdev->priv;

	misc_deregister(&dev->misc);
	down_write(&dev->commit_lock);
	WRITE_ONCE(dev->gone, true);
	up_write(&dev->commit_lock);
	vmsrs_device_wake_all(dev);

	synchronize_srcu(&dev->srcu);

	/* What programs were told is committed has to reach the host. */
	do {
		vmsrs_device_kick_seal(dev);
		flush_delayed_work(&dev->seal_work);
	} while (!vmsrs_device_broken(dev) && work_left(dev));
	vmsrs_device_kick_reports(dev);
	flush_delayed_work(&dev->report_work);

	/*
	 * The pool goes to the device's next driver: no fault handler and no process uses it then.
	 * Commits, discards and the seal work, which has nothing left, do not unmap pages at the
	 * same time.
	 */
	down_write(&dev->commit_lock);
	vmsrs_zap_all(dev);
	up_write(&dev->commit_lock);

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

	unmap_region(&dev->vault_region);
	unmap_region(&dev->pool_region);
	vdev->priv = NULL;
	vmsrs_device_put(dev);
	/* The device can be bound again while files of it are still open. */
	atomic_dec(&device_count);
}

#ifdef CONFIG_PM_SLEEP
/* A reset loses what is in the pool, so the device can't be suspended. */
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
	BUILD_BUG_ON(VMSRS_PAGE_SIZE != PAGE_SIZE);
	vmsrs_locks_init();
	return register_virtio_driver(&vmsrs_driver);
}

static void __exit vmsrs_exit(void)
{
	unregister_virtio_driver(&vmsrs_driver);
}

module_init(vmsrs_init);
module_exit(vmsrs_exit);

MODULE_DESCRIPTION("VMSRS: self-recovery of server programs in a virtual machine");
MODULE_AUTHOR("The VMSRS authors");
MODULE_VERSION("0.1.0");
MODULE_LICENSE("GPL");
