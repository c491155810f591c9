/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT */
/*
 * Protocol between the host, the driver and the guest library of VMSRS.
 *
 * Generated from the crate in protocol/: do not edit, run `make headers`.
 *
 * All fields are little-endian. Reserved fields are written as zero and ignored
 * when read. Structures have no hidden padding.
 */

#ifndef VMSRS_PROTOCOL_H
#define VMSRS_PROTOCOL_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdint.h>
#endif

/*
 * Frames, pages, apps and domains.
 *
 * A frame is named by its index in the pool or in the vault, a page by its index in the
 * address range of its app.
 */

/* Size of a frame and of a page in bytes. */
#define VMSRS_PAGE_SIZE 4096

/*
 * The vault frame of zeros: content of every page that was never committed. It
 * never changes.
 */
#define VMSRS_ZERO_FRAME 0

/* No frame, no page, or no domain. */
#define VMSRS_NONE 0xffffffff

/*
 * In place of a vault frame: the content of the page is lost. Not the number of
 * any frame.
 */
#define VMSRS_DAMAGED_FRAME 0xfffffffe

/*
 * Bit of a version's frame: the rest is the number of a pool frame, not of a
 * vault frame. VMSRS_NONE and VMSRS_DAMAGED_FRAME keep their meaning.
 */
#define VMSRS_IN_POOL 0x80000000

/* Maximum number of frames in the pool and in the vault. */
#define VMSRS_MAX_FRAMES 0x40000000

/*
 * First page and length of an extent are multiples of this number of pages, so
 * that the domain of a page is found by one look-up of its unit.
 */
#define VMSRS_EXTENT_UNIT_PAGES 4

/*
 * Maximum number of pages in an extent: those of the whole address range. How
 * many there can be in all, the window decides.
 */
#define VMSRS_EXTENT_MAX_PAGES (VMSRS_APP_PAGES)

/*
 * Address of page 0 of app 0, in every process. Page 0 of app n is
 * VMSRS_APP_PAGES * VMSRS_PAGE_SIZE * n bytes above. Above the shadow memory of
 * the address sanitizer, which ends at 0x1000_7fff_8000.
 */
#define VMSRS_APP_BASE 0x110000000000

/* Number of pages in the address range of an app (1 TiB). */
#define VMSRS_APP_PAGES 0x10000000

/*
 * Maximum number of apps in a virtual machine. Their ranges end below the
 * addresses that Linux gives to programs, stacks and libraries, and below the
 * heap of the leak sanitizer, which begins at 0x5000_0000_0000.
 */
#define VMSRS_MAX_APPS 63

/* Maximum number of domains of an app. */
#define VMSRS_MAX_DOMAINS 0x100000

/* Maximum length of the name of an app in bytes. */
#define VMSRS_NAME_MAX 64
/* Maximum length of the key of a domain in bytes. */
#define VMSRS_KEY_MAX 64

/*
 * Virtio device: identity, feature bits, queues, configuration space.
 */

/*
 * Virtio device ID. Not assigned by OASIS; outside the assigned range (Virtio
 * 1.2, section 5).
 */
#define VMSRS_DEVICE_ID 0x5653

/* Virtio vendor ID ("VSRS"). */
#define VMSRS_VENDOR_ID 0x53525356
/* Version of the whole protocol. Both sides reject any other. */
#define VMSRS_ABI_VERSION 12
/* Feature bit: the device has an event queue. */
#define VMSRS_FEATURE_EVENTS 0
/* Index of the queue for requests of the driver. */
#define VMSRS_QUEUE_CONTROL 0
/* Index of the queue for events of the host. */
#define VMSRS_QUEUE_EVENT 1
/* Number of queues. */
#define VMSRS_QUEUE_COUNT 2
/* Size of each queue in descriptors. */
#define VMSRS_QUEUE_SIZE 64

/*
 * Shared memory region ID of the pool, which the guest can write (Virtio 1.2,
 * 2.10 and 4.2.2).
 */
#define VMSRS_SHM_POOL 0

/* Shared memory region ID of the vault, which the guest can only read. */
#define VMSRS_SHM_VAULT 1

/**
 * struct vmsrs_device_config - Configuration space of the device; read-only for
 *	the driver.
 * @abi_version: VMSRS_ABI_VERSION of the device.
 * @vault_frames: Number of frames in the vault, VMSRS_ZERO_FRAME included.
 * @pool_frames: Number of frames in the pool. All of them are the driver's:
 *	free, in drafts, or committed and not sealed yet.
 * @batch_records: Maximum number of records in a seal message.
 * @tag_base: First tag of this boot, below 2^62; smaller tags belong to earlier
 *	boots.
 * @incident_base: First incident number of the driver in this boot. The driver
 *	uses odd numbers, the host even ones.
 */
struct vmsrs_device_config {
	uint32_t abi_version;
	uint32_t vault_frames;
	uint32_t pool_frames;
	uint32_t batch_records;
	uint64_t tag_base;
	uint64_t incident_base;
};

/*
 * Control queue: requests of the driver, replies of the host.
 *
 * A message is one descriptor chain: device-readable bytes with a struct
 * vmsrs_control_header and its payload, then device-writable bytes for a struct
 * vmsrs_reply_header and the payload of the reply.
 */

/*
 * Maximum size of a message or reply, headers included. The host rejects longer
 * chains unread.
 */
#define VMSRS_MESSAGE_BYTES_MAX 0x10000

/*
 * Maximum number of messages in a VMSRS_MESSAGE_REPORTS: the host does nothing
 * else meanwhile.
 */
#define VMSRS_PARTS_MAX 32

/*
 * Finds or creates an app by name: struct vmsrs_open_app, struct
 * vmsrs_app_reply.
 */
#define VMSRS_MESSAGE_OPEN_APP 1

/*
 * Finds or creates a domain of an app by key: struct vmsrs_open_domain, struct
 * vmsrs_domain_reply.
 */
#define VMSRS_MESSAGE_OPEN_DOMAIN 2

/*
 * Lists the extents of a domain by index: struct vmsrs_list_domain, struct
 * vmsrs_list_reply and struct vmsrs_extent.
 */
#define VMSRS_MESSAGE_LIST_EXTENTS 3

/*
 * Lists the sealed pages of a domain by page: struct vmsrs_list_domain, struct
 * vmsrs_list_reply and struct vmsrs_page_frame.
 */
#define VMSRS_MESSAGE_LIST_PAGES 4

/*
 * Finds or creates an extent by index: struct vmsrs_add_extent, struct
 * vmsrs_extent_reply.
 */
#define VMSRS_MESSAGE_ADD_EXTENT 5

/*
 * Seals committed pages: struct vmsrs_seal_request and struct
 * vmsrs_seal_record, struct vmsrs_seal_reply and a vault frame number of 32
 * bits for each record.
 */
#define VMSRS_MESSAGE_SEAL 6

/*
 * Reports a failed request: struct vmsrs_incident_report and struct
 * vmsrs_dropped_draft, no payload in the reply. The host copies what it keeps
 * of the drafts.
 */
#define VMSRS_MESSAGE_INCIDENT 7

/*
 * Adds evidence to an incident that was reported before: struct vmsrs_evidence
 * and its bytes, no payload in the reply. Dropped if the incident is not kept
 * any more.
 */
#define VMSRS_MESSAGE_EVIDENCE 8

/*
 * Several messages of the last two kinds, one after the other, no payload in
 * the reply. Each has a struct vmsrs_control_header of its own, and its payload
 * is padded to a multiple of 8 bytes. The first one that is refused ends the
 * message with its status; those before it count. At most VMSRS_PARTS_MAX.
 */
#define VMSRS_MESSAGE_REPORTS 9

/*
 * Names domains that are deleted with the batch that arrives: struct
 * vmsrs_delete_request and struct vmsrs_delete_record, no payload in the reply.
 * They are part of the batch like the pages of a VMSRS_MESSAGE_SEAL: they take
 * effect when its last message has arrived, after its pages, or not at all. A
 * refusal drops the whole batch.
 */
#define VMSRS_MESSAGE_DELETE 10

/* Done. */
#define VMSRS_STATUS_OK 0
/* Malformed message: too short, wrong length, or a field out of range. */
#define VMSRS_STATUS_MALFORMED 1
/* Unknown kind of message. */
#define VMSRS_STATUS_UNKNOWN 2
/* The vault or a table of the host is full. */
#define VMSRS_STATUS_NO_SPACE 3
/* No such app, domain or extent. */
#define VMSRS_STATUS_NOT_FOUND 4
/* The page does not belong to the domain. */
#define VMSRS_STATUS_NOT_OWNER 5
/* The vault frame of a record is not the sealed frame of its page. */
#define VMSRS_STATUS_STALE 6
/* The operating system of the host refused. */
#define VMSRS_STATUS_HOST_ERROR 7

/*
 * Flag of a domain: the host keeps a second copy of each sealed page, which
 * takes as much of the vault as the page.
 */
#define VMSRS_DOMAIN_MIRROR 1

/* Flag of a domain: content of a sealed page is lost (VMSRS_DAMAGED_FRAME). */
#define VMSRS_DOMAIN_DAMAGED 2

/**
 * struct vmsrs_control_header - Header of every message to the host.
 * @kind: One of VMSRS_MESSAGE_*.
 * @length: Bytes of payload after this header.
 */
struct vmsrs_control_header {
	uint32_t kind;
	uint32_t length;
};

/**
 * struct vmsrs_reply_header - Header of every reply.
 * @status: One of VMSRS_STATUS_*.
 * @length: Bytes of payload after this header; 0 unless the status is
 *	VMSRS_STATUS_OK.
 */
struct vmsrs_reply_header {
	uint32_t status;
	uint32_t length;
};

/**
 * struct vmsrs_open_app - Payload of VMSRS_MESSAGE_OPEN_APP.
 * @name: Name of at least one byte, padded with zeros.
 */
struct vmsrs_open_app {
	uint8_t name[VMSRS_NAME_MAX];
};

/**
 * struct vmsrs_app_reply - Reply to VMSRS_MESSAGE_OPEN_APP.
 * @app: Number of the app, below VMSRS_MAX_APPS; it determines the address
 *	range.
 * @domains: Number of its domains.
 */
struct vmsrs_app_reply {
	uint32_t app;
	uint32_t domains;
};

/**
 * struct vmsrs_open_domain - Payload of VMSRS_MESSAGE_OPEN_DOMAIN.
 * @app: The app.
 * @key_length: Length of the key, 1 to VMSRS_KEY_MAX.
 * @key: The key, padded with zeros.
 * @flags: VMSRS_DOMAIN_MIRROR or 0. A domain that has a mirror keeps it either
 *	way.
 * @pages: Number of pages of its first extent, as in pages of struct
 *	vmsrs_add_extent, if it has none yet; 0 to make none.
 * @reuse: The number of a deleted domain that a new one may have, or
 *	VMSRS_NONE. After a reset of the device all may be had.
 */
struct vmsrs_open_domain {
	uint32_t app;
	uint32_t key_length;
	uint8_t key[VMSRS_KEY_MAX];
	uint32_t flags;
	uint32_t pages;
	uint32_t reuse;
};

/**
 * struct vmsrs_extent - An extent: consecutive pages of one domain.
 * @page: First page, a multiple of VMSRS_EXTENT_UNIT_PAGES.
 * @pages: Number of pages, a multiple of VMSRS_EXTENT_UNIT_PAGES and at most
 *	VMSRS_EXTENT_MAX_PAGES.
 */
struct vmsrs_extent {
	uint32_t page;
	uint32_t pages;
};

/**
 * struct vmsrs_domain_reply - Reply to VMSRS_MESSAGE_OPEN_DOMAIN.
 * @domain: Number of the domain in its app, below VMSRS_MAX_DOMAINS.
 * @extents: Number of its extents.
 * @pages: Number of its sealed pages.
 * @flags: Flags of the domain: VMSRS_DOMAIN_MIRROR, VMSRS_DOMAIN_DAMAGED.
 * @first: Its first extent; without pages if it has none.
 * @frames: The frames of the first pages of that extent as in frame of struct
 *	vmsrs_page_frame, VMSRS_NONE without one: most domains have no more, so
 *	that nothing needs to be listed.
 */
struct vmsrs_domain_reply {
	uint32_t domain;
	uint32_t extents;
	uint32_t pages;
	uint32_t flags;
	struct vmsrs_extent first;
	uint32_t frames[VMSRS_EXTENT_UNIT_PAGES];
};

/**
 * struct vmsrs_list_domain - Payload of VMSRS_MESSAGE_LIST_EXTENTS and
 *	VMSRS_MESSAGE_LIST_PAGES.
 * @app: The app.
 * @domain: The domain.
 * @first: First entry: the index of an extent, or a page.
 * @limit: Maximum number of entries; the host sends fewer if the reply has no
 *	room for them.
 */
struct vmsrs_list_domain {
	uint32_t app;
	uint32_t domain;
	uint32_t first;
	uint32_t limit;
};

/**
 * struct vmsrs_list_reply - Start of a reply with a list; the entries follow.
 * @count: Number of entries that follow.
 * @next: first for the next request, or VMSRS_NONE at the end of the list.
 */
struct vmsrs_list_reply {
	uint32_t count;
	uint32_t next;
};

/**
 * struct vmsrs_page_frame - A page and the frame with its sealed content.
 * @page: The page.
 * @frame: The vault frame, or VMSRS_DAMAGED_FRAME if its content is lost.
 */
struct vmsrs_page_frame {
	uint32_t page;
	uint32_t frame;
};

/**
 * struct vmsrs_add_extent - Payload of VMSRS_MESSAGE_ADD_EXTENT.
 * @app: The app.
 * @domain: The domain.
 * @index: Index of the extent, at most the number of extents of the domain.
 * @pages: Number of pages, 1 to VMSRS_EXTENT_MAX_PAGES; rounded up to whole
 *	units.
 *
 * Extents of a domain are numbered from 0. An extent that exists is returned
 * unchanged, whatever its size: a request that grew a domain and failed leaves
 * an extent that the next growth uses.
 */
struct vmsrs_add_extent {
	uint32_t app;
	uint32_t domain;
	uint32_t index;
	uint32_t pages;
};

/* Reply to VMSRS_MESSAGE_ADD_EXTENT. */
typedef struct vmsrs_extent vmsrs_extent_reply;

/**
 * struct vmsrs_delete_request - Payload of VMSRS_MESSAGE_DELETE; the records
 *	follow.
 * @records: Number of records that follow.
 * @reserved: Reserved.
 */
struct vmsrs_delete_request {
	uint32_t records;
	uint32_t reserved;
};

/**
 * struct vmsrs_delete_record - A domain that is deleted, or cleared, which no
 *	batch does twice.
 * @app: The app.
 * @domain: The domain.
 * @extents: How many of its first extents stay; VMSRS_NONE if the domain does
 *	not. All others go back with their pages.
 * @reserved: Reserved.
 */
struct vmsrs_delete_record {
	uint32_t app;
	uint32_t domain;
	uint32_t extents;
	uint32_t reserved;
};

/**
 * struct vmsrs_seal_request - Payload of VMSRS_MESSAGE_SEAL; the seal records
 *	follow.
 * @records: Number of records that follow, at most batch_records of struct
 *	vmsrs_device_config.
 * @flags: VMSRS_SEAL_LAST or 0.
 */
struct vmsrs_seal_request {
	uint32_t records;
	uint32_t flags;
};

/**
 * struct vmsrs_seal_reply - Start of the reply to VMSRS_MESSAGE_SEAL.
 * @sealed: Number of vault frames that follow: that of the records, or 0 after
 *	a refusal.
 * @refusal: VMSRS_STATUS_OK, or why the batch was refused.
 *
 * The vault frames of the message's records follow, in their order: 32 bits
 * each, VMSRS_DAMAGED_FRAME if the pool frame could not be read. They hold the
 * new versions once the last message of the batch has been accepted. A refusal
 * drops the whole batch.
 */
struct vmsrs_seal_reply {
	uint32_t sealed;
	uint32_t refusal;
};

/*
 * Seal records: the payload of VMSRS_MESSAGE_SEAL.
 */

/* Flag of a seal message: it is the last one of its batch. */
#define VMSRS_SEAL_LAST 1

/**
 * struct vmsrs_seal_record - A committed page.
 * @app: The app.
 * @domain: The domain of the page.
 * @page: The page.
 * @pool_frame: Pool frame with the new version. The host copies it once, when
 *	the record arrives; the driver does not change it before the reply.
 * @vault_frame: Vault frame of the version that this one replaces, or
 *	VMSRS_NONE if the page was never sealed.
 * @reserved: Reserved.
 *
 * The records of a *batch* are one consistent cut of the driver's state: all
 * commits up to some moment, each page once, in its newest version. A batch may
 * be spread over several messages. It takes effect as a whole when its last
 * message has arrived, or not at all.
 */
struct vmsrs_seal_record {
	uint32_t app;
	uint32_t domain;
	uint32_t page;
	uint32_t pool_frame;
	uint32_t vault_frame;
	uint32_t reserved;
};

/*
 * Event queue: what the host reports by itself.
 */

/*
 * The kernel or a process of the guest wrote to the vault, and the second-level
 * page table stopped it.
 */
#define VMSRS_EVENT_SEALED_WRITE 1

/*
 * The content of a sealed page is lost, and there is no mirror. address is that
 * of the page, frame held it. This event is never dropped.
 */
#define VMSRS_EVENT_DAMAGE 2

/**
 * struct vmsrs_event - An event.
 * @kind: One of VMSRS_EVENT_*.
 * @frame: The vault frame, or VMSRS_NONE.
 * @incident: Number of the incident, or 0.
 * @address: Guest virtual address of the access, or 0.
 * @instruction: Guest instruction pointer, or 0.
 * @vcpu: The virtual CPU, or VMSRS_NONE.
 * @reserved: Reserved.
 */
struct vmsrs_event {
	uint32_t kind;
	uint32_t frame;
	uint64_t incident;
	uint64_t address;
	uint64_t instruction;
	uint32_t vcpu;
	uint32_t reserved;
};

/*
 * Incidents: what went wrong, and the evidence.
 */

/* SIGSEGV or SIGBUS without a more precise kind, for example a null write. */
#define VMSRS_KIND_MEMORY 1
/* SIGFPE, for example an integer division by zero. */
#define VMSRS_KIND_ARITHMETIC 2
/* SIGILL or SIGTRAP. */
#define VMSRS_KIND_INSTRUCTION 3

/*
 * SIGABRT: failed assertion, heap check of glibc, stack protector, C++
 * terminate, Rust abort.
 */
#define VMSRS_KIND_ABORT 4

/* The request ran into the guard page below its stack. */
#define VMSRS_KIND_STACK_OVERFLOW 5

/*
 * A write to a page of a domain that the request does not hold, or to a guard
 * page between domains, refused by the driver.
 */
#define VMSRS_KIND_FOREIGN_WRITE 6

/* A write to the vault, stopped by the second-level page table. */
#define VMSRS_KIND_SEALED_WRITE 7
/* A block was freed twice. */
#define VMSRS_KIND_DOUBLE_FREE 8
/* A pointer that is not a block of the domain was freed. */
#define VMSRS_KIND_FOREIGN_FREE 9
/* Bytes after the end of a block were overwritten. */
#define VMSRS_KIND_RED_ZONE 10
/* A freed block was written to. */
#define VMSRS_KIND_USE_AFTER_FREE 11
/* The metadata of the heap is damaged. */
#define VMSRS_KIND_HEAP_CORRUPT 12
/* A Rust panic left the request. */
#define VMSRS_KIND_PANIC 13
/* The request missed its deadline (endless loop, deadlock, sleep). */
#define VMSRS_KIND_DEADLINE 14
/* A thread of the request ended inside it. */
#define VMSRS_KIND_THREAD_DEATH 15
/* The process ended with the request in flight. */
#define VMSRS_KIND_PROCESS_DEATH 16

/*
 * The request wrote to more pages than half of the pool has frames, or no frame
 * became free while it waited to write. (A request that has written to many
 * pages leaves the last eighth of the pool to others.)
 */
#define VMSRS_KIND_NO_FRAMES 17

/* The server failed the request: an invariant did not hold. */
#define VMSRS_KIND_INVARIANT 18

/*
 * A read or write of a page that another request was writing, stopped by a
 * protection key.
 */
#define VMSRS_KIND_FOREIGN_DRAFT 19

/* The content of a sealed frame did not match its checksum. */
#define VMSRS_KIND_CHECKSUM 20
/* The hardware of the host reported the memory of a frame as broken. */
#define VMSRS_KIND_POISON 21

/*
 * The request touched a page whose sealed content is lost (VMSRS_KIND_CHECKSUM,
 * VMSRS_KIND_POISON).
 */
#define VMSRS_KIND_DAMAGED 22

/* So many requests of a domain have failed that it is refused for a while. */
#define VMSRS_KIND_QUARANTINE 23
/* Largest of VMSRS_KIND_*. */
#define VMSRS_KIND_MAX 23

/* Report flag: address is that of an access or of a block, even if it is 0. */
#define VMSRS_REPORT_ADDRESS 1
/* Report flag: what the request has left open was counted. */
#define VMSRS_REPORT_LEFT 2

/*
 * Report flag, with VMSRS_REPORT_LEFT: other threads or requests may have had a
 * part in what was counted.
 */
#define VMSRS_REPORT_LEFT_ESTIMATE 4

/* Indices in the registers of a report. */
#define VMSRS_REG_RAX    0
#define VMSRS_REG_RBX    1
#define VMSRS_REG_RCX    2
#define VMSRS_REG_RDX    3
#define VMSRS_REG_RSI    4
#define VMSRS_REG_RDI    5
#define VMSRS_REG_RBP    6
#define VMSRS_REG_RSP    7
#define VMSRS_REG_R8     8
#define VMSRS_REG_R9     9
#define VMSRS_REG_R10    10
#define VMSRS_REG_R11    11
#define VMSRS_REG_R12    12
#define VMSRS_REG_R13    13
#define VMSRS_REG_R14    14
#define VMSRS_REG_R15    15
#define VMSRS_REG_RIP    16
#define VMSRS_REG_RFLAGS 17

/* Number of registers in a report; VMSRS_REG_* are their indices. */
#define VMSRS_REGISTERS 18

/*
 * Number of return addresses in a report, innermost first; unused ones are 0.
 */
#define VMSRS_BACKTRACE 16

/**
 * struct vmsrs_incident_report - Report of a failed request.
 * @incident: Number of the incident, odd.
 * @tag: Tag of the request.
 * @app: The app.
 * @domain: The first domain that the request held, or VMSRS_NONE.
 * @kind: One of VMSRS_KIND_*.
 * @signal: The signal, or 0.
 * @code: si_code of the signal, or 0.
 * @pid: Process ID (thread group) in the guest.
 * @tid: Thread ID in the guest.
 * @drafts: Number of struct vmsrs_dropped_draft that follow.
 * @address: Address of the failed access or of the block; valid with
 *	VMSRS_REPORT_ADDRESS.
 * @address_domain: Domain of address, or VMSRS_NONE.
 * @drafts_total: Number of drafts that were dropped; more than drafts if the
 *	report had no room.
 * @recovery_ns: Nanoseconds from the detection in the guest to the end of the
 *	discard.
 * @flags: VMSRS_REPORT_ADDRESS, VMSRS_REPORT_LEFT, VMSRS_REPORT_LEFT_ESTIMATE.
 * @left_descriptors: Descriptors that the request has left open; valid with
 *	VMSRS_REPORT_LEFT.
 * @left_bytes: Bytes of memory outside of domains that the request has left
 *	allocated; valid with VMSRS_REPORT_LEFT.
 * @thread_name: Name of the thread, padded with zeros.
 * @registers: Registers at the error, indexed by VMSRS_REG_*; all zero if
 *	unknown.
 * @backtrace: Return addresses, innermost first; unused ones are 0.
 */
struct vmsrs_incident_report {
	uint64_t incident;
	uint64_t tag;
	uint32_t app;
	uint32_t domain;
	uint32_t kind;
	int32_t signal;
	int32_t code;
	uint32_t pid;
	uint32_t tid;
	uint32_t drafts;
	uint64_t address;
	uint32_t address_domain;
	uint32_t drafts_total;
	uint64_t recovery_ns;
	uint32_t flags;
	uint32_t left_descriptors;
	uint64_t left_bytes;
	uint8_t thread_name[16];
	uint64_t registers[VMSRS_REGISTERS];
	uint64_t backtrace[VMSRS_BACKTRACE];
};

/**
 * struct vmsrs_dropped_draft - A dropped draft.
 * @domain: The domain.
 * @page: The page.
 * @pool_frame: Pool frame of the draft. The host copies what it keeps as
 *	evidence; the frame is the driver's again with the reply.
 * @committed: The committed version, which stays: its vault frame; its pool
 *	frame with VMSRS_IN_POOL if it is not sealed; VMSRS_NONE if the page was
 *	never committed; or VMSRS_DAMAGED_FRAME.
 */
struct vmsrs_dropped_draft {
	uint32_t domain;
	uint32_t page;
	uint32_t pool_frame;
	uint32_t committed;
};

/* Maximum size in bytes of a stack in struct vmsrs_evidence. */
#define VMSRS_STACK_MAX (16 * 1024)
/* Maximum size in bytes of a module table in struct vmsrs_evidence. */
#define VMSRS_MODULES_MAX (16 * 1024)
/* Maximum size in bytes of a message in struct vmsrs_evidence. */
#define VMSRS_TEXT_MAX 128
/* Maximum size of a build ID in bytes; 20 (SHA-1) is usual. */
#define VMSRS_BUILD_ID_MAX 32

/**
 * struct vmsrs_evidence - Evidence of an incident.
 * @incident: The incident.
 * @stack: Address of the first byte of stack that is kept.
 * @stack_low: Start of the whole stack; its guard lies below.
 * @stack_high: End of the whole stack.
 * @stack_bytes: Size of the stack that is kept, at most VMSRS_STACK_MAX.
 * @modules_bytes: Size of the module table, at most VMSRS_MODULES_MAX.
 * @text_bytes: Size of the message (UTF-8), at most VMSRS_TEXT_MAX.
 * @reserved: Reserved.
 *
 * The stack, the module table (struct vmsrs_module_entry) and the message
 * follow. The driver takes them from the program as they are; their content is
 * not validated.
 */
struct vmsrs_evidence {
	uint64_t incident;
	uint64_t stack;
	uint64_t stack_low;
	uint64_t stack_high;
	uint32_t stack_bytes;
	uint32_t modules_bytes;
	uint32_t text_bytes;
	uint32_t reserved;
};

/**
 * struct vmsrs_module_entry - A module (the program or a library) in a module
 *	table.
 * @bias: Load bias: what the loader added to the addresses in the file.
 * @start: Start address.
 * @end: End address.
 * @build_id_bytes: Size of the build ID; 0 without one.
 * @path_bytes: Size of the path that follows.
 * @build_id: The build ID (ELF note NT_GNU_BUILD_ID).
 *
 * The path follows, padded with zeros to a multiple of 8 bytes.
 */
struct vmsrs_module_entry {
	uint64_t bias;
	uint64_t start;
	uint64_t end;
	uint32_t build_id_bytes;
	uint32_t path_bytes;
	uint8_t build_id[VMSRS_BUILD_ID_MAX];
};

/*
 * Memory that a process shares with the driver: control blocks of its threads,
 * lock words of the app.
 */

/* Maximum number of domains that a request holds. */
#define VMSRS_HELD_MAX 256
/*
 * In place of a key: the request writes to domains no more. What a signal
 * handler of the server would write while it ends is refused.
 */
#define VMSRS_KEY_WRITES_OVER 0xffffffff
/* Maximum number of pages in struct vmsrs_written_pages. */
#define VMSRS_WRITTEN_MAX 1020
/*
 * Entries of entries of struct vmsrs_hot_domains, and claims of a key. A power
 * of two.
 */
#define VMSRS_HOT_ENTRIES 512

/* Maximum number of resident pages of a domain. */
#define VMSRS_RESIDENT_MAX 16

/*
 * Bit of a lock word: threads wait in the driver, and the holder must wake them
 * (VMSRS_IOCTL_LOCK_WAKE).
 */
#define VMSRS_LOCK_WAITERS 0x8000000000000000ULL

/* Mask of a lock word: the tag of the request that holds the domain, or 0. */
#define VMSRS_LOCK_TAG 0x7fffffffffffffff

/*
 * In place of a tag in a lock word: the domain is deleted, until another one
 * gets its number. Not a tag of any request.
 */
#define VMSRS_LOCK_DELETED (VMSRS_LOCK_TAG)

/**
 * struct vmsrs_thread_control - Control block of a thread.
 * @tag: Tag of the request of this thread, or 0.
 * @failed: Written by the driver before it sends the signal of the thread: tag
 *	of a request that has failed. A thread that has this tag must abandon
 *	the request; any other value is stale.
 * @deadline_ns: Deadline in nanoseconds of CLOCK_MONOTONIC (initial time
 *	namespace), or 0. The driver checks it every 10 ms: never early, and
 *	late by one period at most.
 * @held_count: Number of entries in held.
 * @key: Protection key for the drafts of the request, or 0 for none. One that
 *	is not among the thread's (keys of struct vmsrs_ioctl_thread) counts as
 *	0, and VMSRS_KEY_WRITES_OVER refuses all writes. Where the CPU has
 *	protection keys, the driver puts it into the page-table entries of
 *	drafts, so that only threads whose PKRU opens the key reach them. The
 *	thread that makes the first draft determines the key of the request. The
 *	driver opens the key in the PKRU of a thread that makes a draft.
 * @held: Domains that the request holds or is about to lock. One of the threads
 *	of a request has the list. A domain is added before its lock is taken
 *	and removed after it is released, so that a thread can die at any point
 *	without leaving a lock. VMSRS_IOCTL_SUSPEND takes the list over.
 *
 * A page that the process maps writable and the driver reads in its fault
 * handler. A request that writes to no domain starts and ends by changes here,
 * without a system call.
 *
 * The library writes it unless stated otherwise. A wrong value can only harm
 * requests of this thread: a write to a domain is refused unless the lock word
 * of the domain has the same tag.
 */
struct vmsrs_thread_control {
	uint64_t tag;
	uint64_t failed;
	uint64_t deadline_ns;
	uint32_t held_count;
	uint32_t key;
	uint32_t held[VMSRS_HELD_MAX];
};
/**
 * struct vmsrs_written_pages - Pages that a thread's request may have written
 *	to: drafts that first writes of this thread have made, of the page
 *	itself or ahead of the writes to others.
 * @tag: Tag of the request that the rest belongs to; it is stale if the thread
 *	has another tag.
 * @count: Number of drafts that the thread has made since the request began, or
 *	since its last commit or discard that left the request without drafts.
 *	If it exceeds VMSRS_WRITTEN_MAX, the list is cut short, and
 *	VMSRS_IOCTL_DRAFTS has the rest.
 * @hot_keys: The bits of PKRU that disable writes with the keys of this
 *	process's hot domains (struct vmsrs_hot_domains): where one is not set,
 *	the request may have written to resident pages, which are not on the
 *	list.
 * @pages: The pages, in the order of their drafts. A page may be in the list
 *	more than once, and stay in it after a commit of its domain alone.
 *
 * A page of memory that the driver writes and the process maps read-only, so
 * that a stray write cannot hide what the request has changed.
 */
struct vmsrs_written_pages {
	uint64_t tag;
	uint32_t count;
	uint32_t hot_keys;
	uint32_t pages[VMSRS_WRITTEN_MAX];
};
/**
 * struct vmsrs_hot_domain - The hot domain that has a protection key.
 * @domain: Its number.
 * @count: Number of its resident pages; 0 if no domain has the key.
 * @pages: Its resident pages.
 */
struct vmsrs_hot_domain {
	uint32_t domain;
	uint32_t count;
	uint32_t pages[VMSRS_RESIDENT_MAX];
};

/**
 * struct vmsrs_hot_domains - The hot domains of a process: those whose resident
 *	pages are mapped writable under a protection key of the domain between
 *	requests.
 * @entries: By the number of a domain modulo VMSRS_HOT_ENTRIES: the key of the
 *	hot domain with such a number, or 0.
 * @domains: By key.
 *
 * A page of memory that the driver writes and the process maps read-only. The
 * page of claims of a key follows at that many pages: VMSRS_HOT_ENTRIES words
 * of 8 bytes, mapped under the key itself. A request that finds its domain here
 * opens the key, and then has the word of the domain go from 0 to its tag; if
 * it is not 0, or the domain is not hot any more by then, it calls
 * VMSRS_IOCTL_COOL. A commit, discard or failure sets the word to 0.
 */
struct vmsrs_hot_domains {
	uint32_t entries[VMSRS_HOT_ENTRIES];
	struct vmsrs_hot_domain domains[16];
};

/*
 * ioctl(2), fadvise(2) and mmap(2) on /dev/vmsrs.
 *
 * Every call may fail with:
 *
 * - ENODEV: the device is gone, or the host missed a timeout or broke the
 *   protocol.
 * - EBADFD: no app is open on this file.
 * - EINVAL: a field is out of range.
 * - EFAULT: the argument does not point to memory of the caller.
 * - EINTR: a signal came while the call waited.
 * - ENOTTY: no such call.
 */

/*
 * What a successful call returns, plus the number of the file's app
 * (VMSRS_MAX_APPS if none is open on it).
 *
 * So a caller can tell an answer of this file from that of another file, or of
 * another app's, whose descriptor has the number by now. No other file of Linux
 * knows these numbers, but for virtual consoles, which know the two without an
 * argument (VMSRS_IOCTL_FLUSH, VMSRS_IOCTL_THREAD_EXIT); a file system in user
 * space may answer any number, by 0 for example.
 */
#define VMSRS_IOCTL_ANSWER 0x56000000

/*
 * Opens the app of this file (struct vmsrs_ioctl_open_app).
 *
 * - EBUSY: another app is open on this file.
 * - ENOSPC: the host has VMSRS_MAX_APPS apps.
 * - ESTALE: deletions of struct vmsrs_ioctl_open_app is too long ago.
 */
#define VMSRS_IOCTL_OPEN_APP 0xc0785601

/*
 * Opens a domain (struct vmsrs_ioctl_open_domain).
 *
 * - ENOSPC: the app has VMSRS_MAX_DOMAINS domains, or the vault has no room for
 *   the first extent or the mirror.
 */
#define VMSRS_IOCTL_OPEN_DOMAIN 0xc0605602

/*
 * Finds or creates an extent (struct vmsrs_ioctl_extent).
 *
 * - ENOMEM: the vault is full.
 */
#define VMSRS_IOCTL_EXTENT 0xc0105603

/*
 * Registers the calling thread (struct vmsrs_ioctl_thread).
 *
 * - EEXIST: it is registered already.
 * - EAGAIN: too many threads.
 */
#define VMSRS_IOCTL_THREAD 0xc0285604

/* Fetches tags (struct vmsrs_ioctl_tags). */
#define VMSRS_IOCTL_TAGS 0x80105605

/*
 * Fails the request of the calling thread (struct vmsrs_ioctl_fail).
 *
 * Its drafts are discarded, then the locks of its domains are released, its
 * other threads are interrupted (repeatedly, until they have left it), and the
 * host gets the report. If it has failed before, the result is that incident.
 */
#define VMSRS_IOCTL_FAIL 0xc1a05607

/*
 * Discards the drafts of a request without an incident (struct
 * vmsrs_ioctl_tag). It keeps its locks.
 */
#define VMSRS_IOCTL_DISCARD 0x40085608

/*
 * Waits for the lock of a domain and takes it (struct vmsrs_ioctl_lock).
 *
 * - ETIMEDOUT: not within the timeout.
 * - EINTR: a signal came first.
 * - EEXIST: the request of the calling thread holds it already.
 * - ESTALE: the request has failed.
 * - EIDRM: the domain is deleted.
 * - EDEADLK: the holder waits, directly or through other requests, for a domain
 *   that this request holds. The call that would close the cycle gets this; the
 *   others go on waiting.
 *
 * A request waits when any of its threads waits. The lock of a request that has
 * no threads and is not suspended is released after a waiter has waited for a
 * second or until a shorter timeout.
 */
#define VMSRS_IOCTL_LOCK_WAIT 0x40105609

/*
 * Wakes the threads that wait for the lock of a domain (struct
 * vmsrs_ioctl_lock).
 */
#define VMSRS_IOCTL_LOCK_WAKE 0x4010560a

/*
 * Sends the seal batch and waits until everything committed before is sealed.
 * No argument.
 *
 * - ETIMEDOUT: the host did not answer in time.
 */
#define VMSRS_IOCTL_FLUSH 0x560b

/* Reads the state of the driver (struct vmsrs_ioctl_info). */
#define VMSRS_IOCTL_INFO 0x8058560c

/*
 * Unregisters the calling thread; a request that it still has is failed
 * (VMSRS_KIND_THREAD_DEATH). No argument.
 *
 * - ENOENT: it is not registered.
 */
#define VMSRS_IOCTL_THREAD_EXIT 0x560d

/*
 * Suspends the request of the calling thread (struct vmsrs_ioctl_suspend).
 *
 * It keeps its drafts and the domains in held of the thread, though no thread
 * has its tag. The caller clears its control block afterwards.
 *
 * - EPERM: it is not the request of the calling thread.
 * - ESTALE: the request has failed.
 * - EALREADY: it is suspended already.
 * - EAGAIN: VMSRS_SUSPENDED_MAX requests of this file are suspended.
 *
 * A suspended request that misses its deadline is failed: its drafts are
 * discarded and its locks released at once, and its tag is kept until
 * VMSRS_IOCTL_RESUME or VMSRS_IOCTL_ABANDON. When the last reference to this
 * file is dropped, it is failed (VMSRS_KIND_PROCESS_DEATH).
 */
#define VMSRS_IOCTL_SUSPEND 0x4010560e

/*
 * Resumes a suspended request (struct vmsrs_ioctl_tag). The control block of
 * the calling thread has its tag and its domains already.
 *
 * - ENOENT: no such request of this file is suspended.
 * - ESTALE: it has failed meanwhile; VMSRS_IOCTL_FAIL gives the incident.
 */
#define VMSRS_IOCTL_RESUME 0x4008560f

/*
 * Gives up a suspended request (struct vmsrs_ioctl_tag): its drafts are
 * discarded, then its locks are released. The calling thread need not be
 * registered.
 *
 * - ENOENT: no such request of this file is suspended.
 */
#define VMSRS_IOCTL_ABANDON 0x40085610

/*
 * Lists the pages of a domain of which a request has drafts (struct
 * vmsrs_ioctl_drafts), in the order of their first write.
 *
 * - EPERM: it is not the request of the calling thread.
 */
#define VMSRS_IOCTL_DRAFTS 0xc0205611

/*
 * Has the pages of a domain, whose lock the request of the calling thread has,
 * be ordinary ones (struct vmsrs_ioctl_cool): what the request has written to
 * resident ones becomes drafts. Closes the domain's key in PKRU.
 *
 * - EPERM: it is not the request of the calling thread.
 * - ESTALE: the request has failed.
 * - EOWNERDEAD: another request has the domain, whose lock word a stray write
 *   has changed.
 */
#define VMSRS_IOCTL_COOL 0x40105612

/* Counts what the calling process has open (struct vmsrs_ioctl_usage). */
#define VMSRS_IOCTL_USAGE 0x80105613

/*
 * Deletes a domain, whose lock the request of the calling thread has (struct
 * vmsrs_ioctl_delete). Its pages are gone for all processes when the call
 * returns, and its lock word is VMSRS_LOCK_DELETED; what waits for the lock
 * gets EIDRM. The host learns of it with the next batch, like of a commit.
 *
 * - EINVAL: there is no such domain.
 * - EPERM: it is not the request of the calling thread, or it does not have the
 *   lock.
 * - ESTALE: the request has failed.
 * - EBUSY: the request has written to the domain.
 */
#define VMSRS_IOCTL_DELETE 0x40105614

/*
 * Lists domains that were deleted (struct vmsrs_ioctl_deleted): what a process
 * knows of these numbers belongs to no domain any more. A number is used again
 * when every file of the app has said that its process has noted the deletion,
 * by after of struct vmsrs_ioctl_deleted.
 */
#define VMSRS_IOCTL_DELETED 0xc0205615

/*
 * Counts the pages of a domain (struct vmsrs_ioctl_domain_info).
 *
 * - EINVAL: there is no such domain.
 */
#define VMSRS_IOCTL_DOMAIN_INFO 0xc0185616

/*
 * Leases bytes of a domain (struct vmsrs_ioctl_lease): maps their pages once
 * more, read-only, as they are committed at that moment. What that mapping
 * shows never changes, whatever becomes of the pages and of the domain; munmap
 * of all of it ends the lease, as does the end of the process.
 *
 * - EINVAL: the bytes are not all of one domain with that number, or they are
 *   none or too many (VMSRS_LEASE_PAGES_MAX).
 * - EBUSY: a request has changed them and not committed that.
 * - ENOSPC: too many pages are leased.
 * - EIO: content is lost.
 */
#define VMSRS_IOCTL_LEASE 0xc0185617

/*
 * Commits drafts of a request: fadvise64(fd, tag, domain << 32 | flags,
 * ADVICE_COMMIT), with the domain to commit or VMSRS_NONE for all, and
 * VMSRS_COMMIT_SEAL and VMSRS_COMMIT_ALONE or 0 as flags (VMSRS_commit_length).
 * The answer is that of an ioctl.
 *
 * An ioctl's security hooks and the copy of its argument would add a twentieth
 * to a small commit. Linux's other files refuse this advice with an error
 * (EINVAL, ESPIPE or EBADF).
 *
 * - EINVAL: the tag is 0, or another argument is out of range.
 * - EPERM: it is not the request of the calling thread.
 * - ESTALE: the driver has failed the request (deadline); nothing is committed.
 * - EOWNERDEAD: the calling thread has the key of a hot domain open, but a
 *   stray write has taken the domain from its request; nothing is committed.
 * - ETIMEDOUT: committed, but the host did not seal in time (VMSRS_COMMIT_SEAL
 *   only).
 * - EIO: committed, but content of a domain that the thread holds was lost
 *   before it was sealed, because the host's memory is broken
 *   (VMSRS_COMMIT_SEAL only).
 */
#define VMSRS_ADVICE_COMMIT 0x5606

/* The mmap offset of the pages of app n is n shifted left by this. */
#define VMSRS_APP_OFFSET_SHIFT 40

/*
 * mmap offset of the first control block; struct vmsrs_ioctl_thread has that of
 * a thread.
 */
#define VMSRS_CONTROL_OFFSET 0x4000000000000

/*
 * mmap offset of the first list of written pages; struct vmsrs_ioctl_thread has
 * that of a thread.
 */
#define VMSRS_WRITTEN_OFFSET 0x6000000000000

/*
 * mmap offset of the page struct vmsrs_hot_domains of this file, for a shared
 * mapping to read. At that many pages from it, up to 15, are the claims of a
 * protection key: a process that maps these gives the key to hot domains.
 */
#define VMSRS_HOT_OFFSET 0x7000000000000

/* mmap offset of the first lease; only VMSRS_IOCTL_LEASE maps there. */
#define VMSRS_LEASES_OFFSET 0x9000000000000

/*
 * mmap offset of the lock words of the app: 8 bytes for each domain, indexed by
 * domain.
 */
#define VMSRS_LOCKS_OFFSET 0x8000000000000

/* Size of the lock words in bytes: 8 for each of VMSRS_MAX_DOMAINS domains. */
#define VMSRS_LOCKS_LENGTH 0x800000

/* Commit flag: return once the host has sealed the commit. */
#define VMSRS_COMMIT_SEAL 1

/*
 * Commit flag: one thread alone has worked for the request, and in one domain
 * alone. Its domain may become hot.
 */
#define VMSRS_COMMIT_ALONE 2

/* Maximum number of suspended requests of an open file. */
#define VMSRS_SUSPENDED_MAX 4096
/* Maximum number of pages in the result of VMSRS_IOCTL_DRAFTS. */
#define VMSRS_DRAFTS_MAX 1024
/* Maximum number of domains in the result of VMSRS_IOCTL_DELETED. */
#define VMSRS_DELETED_MAX 512
/* Maximum number of leases at a time. */
#define VMSRS_LEASES_MAX 0x10000
/* Maximum number of pages of a lease. */
#define VMSRS_LEASE_PAGES_MAX 1024

/**
 * struct vmsrs_ioctl_open_app - Argument of VMSRS_IOCTL_OPEN_APP.
 * @name: In: name of at least one byte, padded with zeros.
 * @base: Out: address at which the pages must be mapped (MAP_FIXED_NOREPLACE).
 * @length: Out: size of the address range in bytes.
 * @pages_offset: Out: mmap offset of the pages, for a shared mapping to read
 *	and write.
 * @locks_offset: Out: mmap offset of the lock words.
 * @locks_length: Out: size of the lock words in bytes.
 * @abi_version: In: VMSRS_ABI_VERSION of the library.
 * @app: Out: number of the app.
 * @deletions: In: how far the process has noted deletions of the app's domains,
 *	as in after of struct vmsrs_ioctl_deleted; u64::MAX if it has opened
 *	none yet. Out: the number of the last one that counts as noted.
 */
struct vmsrs_ioctl_open_app {
	uint8_t name[VMSRS_NAME_MAX];
	uint64_t base;
	uint64_t length;
	uint64_t pages_offset;
	uint64_t locks_offset;
	uint64_t locks_length;
	uint32_t abi_version;
	uint32_t app;
	uint64_t deletions;
};

/**
 * struct vmsrs_ioctl_open_domain - Argument of VMSRS_IOCTL_OPEN_DOMAIN.
 * @key: In: the key, padded with zeros.
 * @key_length: In: length of the key.
 * @domain: Out: number of the domain, the index of its lock word.
 * @extents: Out: number of its extents.
 * @flags: In: VMSRS_DOMAIN_MIRROR or 0. Out: flags of the domain.
 * @pages: In: number of pages of the first extent if it has none yet, or 0 to
 *	make none.
 * @reserved: Reserved.
 * @deletions: Out: number of the last deletion in the app, for
 *	VMSRS_IOCTL_DELETED.
 */
struct vmsrs_ioctl_open_domain {
	uint8_t key[VMSRS_KEY_MAX];
	uint32_t key_length;
	uint32_t domain;
	uint32_t extents;
	uint32_t flags;
	uint32_t pages;
	uint32_t reserved;
	uint64_t deletions;
};

/**
 * struct vmsrs_ioctl_extent - Argument of VMSRS_IOCTL_EXTENT.
 * @domain: In: the domain.
 * @index: In: index of the extent, at most the number of extents of the domain.
 * @pages: In: number of pages of a new extent. Out: number of its pages.
 * @page: Out: first page.
 */
struct vmsrs_ioctl_extent {
	uint32_t domain;
	uint32_t index;
	uint32_t pages;
	uint32_t page;
};

/**
 * struct vmsrs_ioctl_thread - Argument of VMSRS_IOCTL_THREAD.
 * @control_offset: Out: mmap offset of the control block (struct
 *	vmsrs_thread_control).
 * @written_offset: Out: mmap offset of its list of written pages (struct
 *	vmsrs_written_pages), for a shared mapping to read.
 * @tag_first: Out: first tag for this thread.
 * @tag_count: Out: number of consecutive tags.
 * @signal: In: signal for the thread when its request must end (deadline,
 *	failure of another thread), or 0.
 * @keys: In: protection keys that drafts of the thread's requests may have; bit
 *	1 is for key 1, and so on to 15. Bit 17 says that key 1 is one for hot
 *	domains, and so on to 31.
 */
struct vmsrs_ioctl_thread {
	uint64_t control_offset;
	uint64_t written_offset;
	uint64_t tag_first;
	uint64_t tag_count;
	uint32_t signal;
	uint32_t keys;
};

/**
 * struct vmsrs_ioctl_tags - Argument of VMSRS_IOCTL_TAGS.
 * @tag_first: Out: first tag.
 * @tag_count: Out: number of consecutive tags.
 */
struct vmsrs_ioctl_tags {
	uint64_t tag_first;
	uint64_t tag_count;
};

/**
 * struct vmsrs_ioctl_fail - Argument of VMSRS_IOCTL_FAIL.
 * @incident: Out: number of the incident.
 * @tag: In: tag of the request.
 * @detected_ns: In: time of the detection in nanoseconds of CLOCK_MONOTONIC, or
 *	0.
 * @recovery_ns: Out: nanoseconds from the detection to the end of the discard.
 * @address: In: address of the failed access or of the block; valid with
 *	VMSRS_REPORT_ADDRESS.
 * @kind: In: one of VMSRS_KIND_*; VMSRS_KIND_MEMORY is refined by the driver
 *	(VMSRS_KIND_FOREIGN_WRITE, VMSRS_KIND_FOREIGN_DRAFT,
 *	VMSRS_KIND_SEALED_WRITE, VMSRS_KIND_NO_FRAMES, VMSRS_KIND_DEADLINE).
 *	Out: the kind in the report.
 * @signal: In: the signal, or 0.
 * @code: In: si_code, or 0.
 * @drafts: Out: number of drafts that were dropped, by this call and before it
 *	(by another thread of the request, or by the driver after its deadline).
 * @handled: In: signals that the library handles, signal 1 in the lowest bit.
 *	Out: those of them for which the process has another handler than
 *	handler.
 * @registers: In: registers, indexed by VMSRS_REG_*.
 * @backtrace: In: return addresses, innermost first; unused ones are 0.
 * @stack: In: address of the stack to keep as evidence. Evidence is read after
 *	the drafts are discarded and the locks released; what cannot be read is
 *	left out.
 * @stack_low: In: start of the whole stack.
 * @stack_high: In: end of the whole stack.
 * @modules: In: address of the module table (struct vmsrs_module_entry).
 * @text: In: address of the message.
 * @stack_bytes: In: size of the stack, at most VMSRS_STACK_MAX.
 * @modules_bytes: In: size of the module table, at most VMSRS_MODULES_MAX.
 * @text_bytes: In: size of the message, at most VMSRS_TEXT_MAX.
 * @flags: In: VMSRS_REPORT_ADDRESS, VMSRS_REPORT_LEFT,
 *	VMSRS_REPORT_LEFT_ESTIMATE.
 * @left_descriptors: In: descriptors that the request has left open; valid with
 *	VMSRS_REPORT_LEFT.
 * @reserved: Reserved.
 * @left_bytes: In: bytes of memory that the request has left allocated; valid
 *	with VMSRS_REPORT_LEFT.
 * @handler: In: address of the library's signal handler.
 */
struct vmsrs_ioctl_fail {
	uint64_t incident;
	uint64_t tag;
	uint64_t detected_ns;
	uint64_t recovery_ns;
	uint64_t address;
	uint32_t kind;
	int32_t signal;
	int32_t code;
	uint32_t drafts;
	uint64_t handled;
	uint64_t registers[VMSRS_REGISTERS];
	uint64_t backtrace[VMSRS_BACKTRACE];
	uint64_t stack;
	uint64_t stack_low;
	uint64_t stack_high;
	uint64_t modules;
	uint64_t text;
	uint32_t stack_bytes;
	uint32_t modules_bytes;
	uint32_t text_bytes;
	uint32_t flags;
	uint32_t left_descriptors;
	uint32_t reserved;
	uint64_t left_bytes;
	uint64_t handler;
};

/**
 * struct vmsrs_ioctl_suspend - Argument of VMSRS_IOCTL_SUSPEND.
 * @tag: In: tag of the request.
 * @deadline_ns: In: deadline in nanoseconds of CLOCK_MONOTONIC, or 0.
 */
struct vmsrs_ioctl_suspend {
	uint64_t tag;
	uint64_t deadline_ns;
};

/**
 * struct vmsrs_ioctl_tag - Argument of VMSRS_IOCTL_DISCARD, VMSRS_IOCTL_RESUME
 *	and VMSRS_IOCTL_ABANDON.
 * @tag: In: tag of the request.
 */
struct vmsrs_ioctl_tag {
	uint64_t tag;
};

/**
 * struct vmsrs_ioctl_cool - Argument of VMSRS_IOCTL_COOL.
 * @tag: In: tag of the request.
 * @domain: In: the domain.
 * @reserved: Reserved: 0.
 */
struct vmsrs_ioctl_cool {
	uint64_t tag;
	uint32_t domain;
	uint32_t reserved;
};

/**
 * struct vmsrs_ioctl_delete - Argument of VMSRS_IOCTL_DELETE.
 * @tag: In: tag of the request.
 * @domain: In: the domain.
 * @reserved: Reserved: 0.
 */
struct vmsrs_ioctl_delete {
	uint64_t tag;
	uint32_t domain;
	uint32_t reserved;
};

/**
 * struct vmsrs_ioctl_deleted - Argument of VMSRS_IOCTL_DELETED.
 * @after: In: number of the last deletion that the process has noted.
 * @domains: In: address of an array of capacity numbers of domains, of 32 bits
 *	each, for those that were deleted after that.
 * @last: Out: number of the last deletion in the array, or of the last one of
 *	all if that is in it.
 * @capacity: In: size of the array, 1 to VMSRS_DELETED_MAX.
 * @count: Out: number of domains in the array; capacity if there may be more.
 */
struct vmsrs_ioctl_deleted {
	uint64_t after;
	uint64_t domains;
	uint64_t last;
	uint32_t capacity;
	uint32_t count;
};

/**
 * struct vmsrs_ioctl_domain_info - Argument of VMSRS_IOCTL_DOMAIN_INFO.
 * @domain: In: the domain.
 * @extents: Out: number of its extents.
 * @pages: Out: pages in its extents.
 * @committed: Out: pages of these that were ever committed.
 * @unsealed: Out: committed pages whose newest version is not sealed yet.
 * @drafts: Out: drafts of the request that writes it, those of resident pages
 *	included.
 */
struct vmsrs_ioctl_domain_info {
	uint32_t domain;
	uint32_t extents;
	uint32_t pages;
	uint32_t committed;
	uint32_t unsealed;
	uint32_t drafts;
};

/**
 * struct vmsrs_ioctl_usage - Answer of VMSRS_IOCTL_USAGE.
 * @descriptors: Open descriptors.
 * @threads: Threads.
 * @memory: Bytes of private writable memory, stacks included.
 */
struct vmsrs_ioctl_usage {
	uint32_t descriptors;
	uint32_t threads;
	uint64_t memory;
};

/**
 * struct vmsrs_ioctl_lease - Argument of VMSRS_IOCTL_LEASE.
 * @address: In: address of the first byte. Out: where the lease shows it.
 * @length: In: number of bytes.
 * @domain: In: the domain.
 * @reserved: Reserved: 0.
 */
struct vmsrs_ioctl_lease {
	uint64_t address;
	uint64_t length;
	uint32_t domain;
	uint32_t reserved;
};

/**
 * struct vmsrs_ioctl_lock - Argument of VMSRS_IOCTL_LOCK_WAIT and
 *	VMSRS_IOCTL_LOCK_WAKE.
 * @tag: In: tag of the request that takes the lock; ignored by
 *	VMSRS_IOCTL_LOCK_WAKE.
 * @domain: In: the domain.
 * @timeout_ms: In: timeout in milliseconds, 1 to 3,600,000; ignored by
 *	VMSRS_IOCTL_LOCK_WAKE.
 */
struct vmsrs_ioctl_lock {
	uint64_t tag;
	uint32_t domain;
	uint32_t timeout_ms;
};

/**
 * struct vmsrs_ioctl_drafts - Argument of VMSRS_IOCTL_DRAFTS.
 * @tag: In: tag of the request.
 * @pages: In: address of an array of capacity page numbers of 32 bits.
 * @domain: In: the domain.
 * @skip: In: number of pages to skip.
 * @capacity: In: size of the array, 1 to VMSRS_DRAFTS_MAX.
 * @count: Out: number of pages in the array.
 */
struct vmsrs_ioctl_drafts {
	uint64_t tag;
	uint64_t pages;
	uint32_t domain;
	uint32_t skip;
	uint32_t capacity;
	uint32_t count;
};

/**
 * struct vmsrs_ioctl_info - Argument of VMSRS_IOCTL_INFO.
 * @vault_frames: Number of frames in the vault.
 * @pool_frames: Number of frames in the pool whose memory is not known to be
 *	broken.
 * @pool_free: Free frames in the pool of the driver.
 * @drafts: Drafts of all requests.
 * @unsealed: Pages that are committed and not sealed yet.
 * @broken: 1 if the host missed a timeout or broke the protocol; no domain can
 *	be written then.
 * @resident: Frames of the pool that resident pages have, between requests too.
 * @reports: Reports that the host has not taken yet. They hold the frames of
 *	the drafts that they name.
 * @commits: Commits of at least one page, since the driver was loaded.
 * @sealed_pages: Pages sealed. A page that was committed several times between
 *	two seals counts once.
 * @discarded: Drafts discarded.
 * @incidents: Incidents reported by the driver.
 * @seal_messages: Seal messages sent. Compared with commits, this tells how
 *	rare exits are.
 * @write_faults: Write faults that made a draft.
 * @zaps: Calls that removed page-table entries of mapped pages; each flushes
 *	the TLB.
 */
struct vmsrs_ioctl_info {
	uint32_t vault_frames;
	uint32_t pool_frames;
	uint32_t pool_free;
	uint32_t drafts;
	uint32_t unsealed;
	uint32_t broken;
	uint32_t resident;
	uint32_t reports;
	uint64_t commits;
	uint64_t sealed_pages;
	uint64_t discarded;
	uint64_t incidents;
	uint64_t seal_messages;
	uint64_t write_faults;
	uint64_t zaps;
};

#endif /* VMSRS_PROTOCOL_H */
