/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs between the kernels that the driver is built for (6.1, 6.12 and 7.3).
 */
#ifndef VMSRS_COMPAT_H
#define VMSRS_COMPAT_H

#include <linux/mm.h>
#include <linux/version.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
/* 6.3 made vm_flags read-only outside its accessors. The caller is .mmap. */
static inline void vm_flags_mod(struct vm_area_struct *vma, unsigned long set,
				unsigned long clear)
{
	vma->vm_flags = (vma->vm_flags | set) & ~clear;
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 7, 0)
/* 6.4 brought faults under a VMA's own lock, 6.7 this name for letting go of either lock. */
static inline void release_fault_lock(struct vm_fault *vmf)
{
	mmap_read_unlock(vmf->vma->vm_mm);
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 1, 0)
/* Its name since 7.1. */
static inline void zap_special_vma_range(struct vm_area_struct *vma,
					 unsigned long address, unsigned long size)
{
	zap_vma_ptes(vma, address, size);
}
#endif

/* A virtqueue as all kernels want to be told about it. */
struct vmsrs_queue {
	const char *name;
	vq_callback_t *callback;
};

#define VMSRS_QUEUES_MAX 2

static inline int vmsrs_find_vqs(struct virtio_device *vdev, unsigned int count,
				 struct virtqueue *vqs[],
				 const struct vmsrs_queue queues[])
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 11, 0)
	vq_callback_t *callbacks[VMSRS_QUEUES_MAX] = { };
	const char *names[VMSRS_QUEUES_MAX] = { };
	unsigned int i;

	for (i = 0; i < count; i++) {
		callbacks[i] = queues[i].callback;
		names[i] = queues[i].name;
	}
	return virtio_find_vqs(vdev, count, vqs, callbacks, names, NULL);
#else
	struct virtqueue_info info[VMSRS_QUEUES_MAX] = { };
	unsigned int i;

	for (i = 0; i < count; i++) {
		info[i].name = queues[i].name;
		info[i].callback = queues[i].callback;
	}
	return virtio_find_vqs(vdev, count, vqs, info, NULL);
#endif
}

#endif /* VMSRS_COMPAT_H */
