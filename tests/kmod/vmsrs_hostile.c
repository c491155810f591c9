// SPDX-License-Identifier: GPL-2.0
/*
 * Test module: a driver that may do anything to the VMSRS device.
 *
 * It takes the place of vmsrs.ko and gives a process what a driver has: the device's registers, and
 * memory with a known physical address for queues and buffers. The process decides what is sent;
 * nothing is checked. Never load it outside a test.
 *
 * In /sys/kernel/debug/vmsrs_hostile:
 *
 *	registers	pread(2) and pwrite(2) of 1, 2, 4 or 8 bytes make one access of that width
 *			at that offset, aligned or not
 *	memory		can be mapped: HOSTILE_MEMORY_LENGTH bytes of contiguous RAM
 *	address		physical address of this memory
 *
 * The virtio core does not know the queues set up this way and gets no interrupts: the process polls
 * its used rings.
 */
#include <linux/debugfs.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/uaccess.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#define HOSTILE_DEVICE_ID	0x5653
#define HOSTILE_MEMORY_LENGTH	(1UL << 20)

/* There is one device. Set by probe; remove ends all use of the files, then clears them. */
static struct dentry *directory;
static void __iomem *registers;
static resource_size_t registers_length;
static void *memory;
static u64 memory_address;

static ssize_t registers_read(struct file *file, char __user *user, size_t size, loff_t *offset)
{
	void __iomem *place = registers + *offset;
	u64 value;

	if (*offset < 0 || *offset > registers_length || size > registers_length - *offset)
		return -EINVAL;
	switch (size) {
	case 1:
		value = readb(place);
		break;
	case 2:
		value = readw(place);
		break;
	case 4:
		value = readl(place);
		break;
	case 8:
		value = readq(place);
		break;
	default:
		return -EINVAL;
	}
	/* Little-endian, so that the first bytes are the value in each width. */
	if (copy_to_user(user, &value, size))
		return -EFAULT;
	return size;
}

static ssize_t registers_write(struct file *file, const char __user *user, size_t size,
			       loff_t *offset)
{
	void __iomem *place = registers + *offset;
	u64 value = 0;

	if (*offset < 0 || *offset > registers_length || size > registers_length - *offset ||
	    size > sizeof(value))
		return -EINVAL;
	if (copy_from_user(&value, user, size))
		return -EFAULT;
	switch (size) {
	case 1:
		writeb(value, place);
		break;
	case 2:
		writew(value, place);
		break;
	case 4:
		writel(value, place);
		break;
	case 8:
		writeq(value, place);
		break;
	default:
		return -EINVAL;
	}
	return size;
}

static const struct file_operations registers_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.read = registers_read,
	.write = registers_write,
	.llseek = default_llseek,
};

static int memory_mmap(struct file *file, struct vm_area_struct *vma)
{
	unsigned long size = vma->vm_end - vma->vm_start;

	if (vma->vm_pgoff || size > HOSTILE_MEMORY_LENGTH)
		return -EINVAL;
	return remap_pfn_range(vma, vma->vm_start, PHYS_PFN(memory_address), size,
			       vma->vm_page_prot);
}

static const struct file_operations memory_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.mmap = memory_mmap,
};

static int hostile_probe(struct virtio_device *vdev)
{
	struct resource *resource;

	if (directory)
		return -EBUSY;
	if (vdev->dev.parent->bus != &platform_bus_type)
		return -ENODEV;
	resource = platform_get_resource(to_platform_device(vdev->dev.parent), IORESOURCE_MEM, 0);
	if (!resource)
		return -ENODEV;
	registers_length = resource_size(resource);
	registers = ioremap(resource->start, registers_length);
	if (!registers)
		return -ENOMEM;
	memory = alloc_pages_exact(HOSTILE_MEMORY_LENGTH, GFP_KERNEL | __GFP_ZERO);
	if (!memory) {
		iounmap(registers);
		return -ENOMEM;
	}
	memory_address = virt_to_phys(memory);

	directory = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_file("registers", 0600, directory, NULL, &registers_fops);
	/* "Unsafe": debugfs's own wrapper has no mmap. A mapping holds the module. */
	debugfs_create_file_unsafe("memory", 0600, directory, NULL, &memory_fops);
	debugfs_create_x64("address", 0400, directory, &memory_address);
	return 0;
}

static void hostile_remove(struct virtio_device *vdev)
{
	debugfs_remove(directory);
	directory = NULL;
	virtio_reset_device(vdev);
	free_pages_exact(memory, HOSTILE_MEMORY_LENGTH);
	iounmap(registers);
}

static const struct virtio_device_id hostile_ids[] = {
	{ HOSTILE_DEVICE_ID, VIRTIO_DEV_ANY_ID },
	{ }
};

static struct virtio_driver hostile_driver = {
	.driver.name = KBUILD_MODNAME,
	.driver.owner = THIS_MODULE,
	.id_table = hostile_ids,
	.probe = hostile_probe,
	.remove = hostile_remove,
};
/* No alias, so that it is not loaded automatically. */
module_virtio_driver(hostile_driver);

MODULE_DESCRIPTION("Test module: a hostile driver of the VMSRS device");
MODULE_AUTHOR("The VMSRS authors");
MODULE_LICENSE("GPL");
