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
 * A frame is named by its index in the window, a page by its index in the
 * address range of its app.
 */

/* Bytes in a frame and in a page. */
#define VMSRS_PAGE_SIZE 4096

/*
 * Number of the frame that is all zeros for ever: the content of every page
 * that was never committed. It is sealed from the start and never granted.
 */
#define VMSRS_ZERO_FRAME 0

/*
 * "No frame", "no page" or "no domain", where a field of that kind may be
 * empty.
 */
#define VMSRS_NONE 0xffffffff

/*
 * In a list of sealed pages: the page's content is lost. No window has a frame
 * of this number.
 */
#define VMSRS_DAMAGED_FRAME 0xfffffffe

/*
 * Pages of a domain come in extents whose length is a multiple of this many
 * pages and whose first page is a multiple of it too, so that page → domain is
 * one look-up per unit.
 */
#define VMSRS_EXTENT_UNIT_PAGES 4

/* Most pages in one extent (4 MiB). */
#define VMSRS_EXTENT_MAX_PAGES 1024

/*
 * Address of the first app's first page, in every process that opens it. App n
 * lies n * APP_PAGES * PAGE_SIZE bytes above.
 */
#define VMSRS_APP_BASE 0x100000000000

/* Pages in an app's address range (1 TiB). */
#define VMSRS_APP_PAGES 0x10000000

/*
 * Most apps in one virtual machine; keeps every app's range below the addresses
 * that Linux gives to programs, stacks and libraries.
 */
#define VMSRS_MAX_APPS 64

/* Most domains of one app. */
#define VMSRS_MAX_DOMAINS 0x100000

/* Longest app name in bytes. */
#define VMSRS_NAME_MAX 64
/* Longest domain key in bytes. */
#define VMSRS_KEY_MAX 64

/**
 * struct vmsrs_frame_run - A run of consecutive frames.
 * @start: First frame.
 * @count: Number of frames, at least one.
 */
struct vmsrs_frame_run {
	uint32_t start;
	uint32_t count;
};

/*
 * Virtio device: identity, feature bits, queues, configuration space.
 */

/*
 * Virtio device ID. Not assigned by OASIS; chosen outside the range that is
 * being assigned (Virtio 1.2, section 5).
 */
#define VMSRS_DEVICE_ID 0x5653

/* Virtio vendor ID ("VSRS"). */
#define VMSRS_VENDOR_ID 0x53525356
/* Version of everything in this crate. Both sides refuse any other. */
#define VMSRS_ABI_VERSION 3
/* Feature bit: the device has an event queue. */
#define VMSRS_FEATURE_EVENTS 0
/* Index of the queue with requests of the driver and the host's answers. */
#define VMSRS_QUEUE_CONTROL 0
/* Index of the queue with buffers for what the host reports by itself. */
#define VMSRS_QUEUE_EVENT 1
/* Number of queues. */
#define VMSRS_QUEUE_COUNT 2
/* Size of each queue in descriptors. */
#define VMSRS_QUEUE_SIZE 64
/* Shared memory region ID of the window (Virtio 1.2, 2.10 and 4.2.2). */
#define VMSRS_SHM_WINDOW 0

/**
 * struct vmsrs_device_config - The device's configuration space; read-only for
 *	the driver.
 * @abi_version: VMSRS_ABI_VERSION of the device.
 * @window_frames: Frames in the window, VMSRS_ZERO_FRAME included.
 * @pool_frames: Most frames that the driver may hold as granted (free in its
 *	pool, in drafts, or committed and not yet sealed).
 * @batch_records: Most records in one seal message.
 * @tag_base: First tag of this boot; tags below it belong to earlier boots.
 *	Below 2^62.
 * @incident_base: First incident number that the driver may use in this boot;
 *	odd. The driver counts on in steps of two, the host numbers its own incidents
 *	with even numbers.
 */
struct vmsrs_device_config {
	uint32_t abi_version;
	uint32_t window_frames;
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
 * Largest message or reply in bytes, headers included; the host refuses longer
 * chains unread.
 */
#define VMSRS_MESSAGE_BYTES_MAX 0x10000

/* Most struct vmsrs_frame_run in one reply. */
#define VMSRS_REPLY_RUNS_MAX 64

/*
 * struct vmsrs_open_app → struct vmsrs_app_reply: finds or makes an app by
 * name.
 */
#define VMSRS_MESSAGE_OPEN_APP 1

/*
 * struct vmsrs_open_domain → struct vmsrs_domain_reply: finds or makes a domain
 * of an app by key.
 */
#define VMSRS_MESSAGE_OPEN_DOMAIN 2

/*
 * struct vmsrs_list_domain → struct vmsrs_list_reply and struct vmsrs_extent:
 * the domain's extents in order of their index.
 */
#define VMSRS_MESSAGE_LIST_EXTENTS 3

/*
 * struct vmsrs_list_domain → struct vmsrs_list_reply and struct
 * vmsrs_page_frame: the domain's sealed pages in order of page.
 */
#define VMSRS_MESSAGE_LIST_PAGES 4

/*
 * struct vmsrs_add_extent → struct vmsrs_extent_reply: the extent with that
 * index, made if it does not exist.
 */
#define VMSRS_MESSAGE_ADD_EXTENT 5

/*
 * struct vmsrs_grant_request → struct vmsrs_grant_reply and struct
 * vmsrs_frame_run: frames for the driver's pool.
 */
#define VMSRS_MESSAGE_GRANT 6

/*
 * struct vmsrs_seal_request and struct vmsrs_seal_record → struct
 * vmsrs_seal_reply and struct vmsrs_frame_run: committed pages become the
 * authority; new frames come in exchange for the retired ones.
 */
#define VMSRS_MESSAGE_SEAL 7

/*
 * struct vmsrs_incident_report and struct vmsrs_dropped_draft → struct
 * vmsrs_grant_reply and struct vmsrs_frame_run: a request failed; its drafts
 * are evidence, then cleansed.
 */
#define VMSRS_MESSAGE_INCIDENT 8

/*
 * struct vmsrs_discard_request and frame numbers (u32 each) → struct
 * vmsrs_grant_reply and struct vmsrs_frame_run: drafts dropped without an
 * error; cleansed.
 */
#define VMSRS_MESSAGE_DISCARD 9

/*
 * struct vmsrs_evidence and its bytes → nothing: belongs to an incident that
 * was reported before. That of an incident which is not kept is dropped.
 */
#define VMSRS_MESSAGE_EVIDENCE 10

/* The message was carried out. */
#define VMSRS_STATUS_OK 0

/*
 * The bytes are no message: too short, wrong length, a field out of its range.
 */
#define VMSRS_STATUS_MALFORMED 1

/* The kind of message is not known. */
#define VMSRS_STATUS_UNKNOWN 2
/* The window, or a table of the host, is full. */
#define VMSRS_STATUS_NO_SPACE 3
/* No such app, domain or extent. */
#define VMSRS_STATUS_NOT_FOUND 4
/* A frame that is not granted, or a page that is not the domain's. */
#define VMSRS_STATUS_NOT_OWNER 5
/* The record's old frame is not the page's sealed frame. */
#define VMSRS_STATUS_STALE 6

/*
 * The host could not carry the message out (its own operating system refused).
 */
#define VMSRS_STATUS_HOST_ERROR 7

/*
 * Flag of a domain: the host keeps a second copy of each sealed page. The
 * copies take room of the window, as much as the pages.
 */
#define VMSRS_DOMAIN_MIRROR 1

/*
 * Flag of a domain: the content of some sealed page is lost
 * (VMSRS_DAMAGED_FRAME).
 */
#define VMSRS_DOMAIN_DAMAGED 2

/**
 * struct vmsrs_control_header - Starts every message to the host.
 * @kind: One of the MESSAGE_ constants.
 * @length: Bytes of payload behind this header.
 */
struct vmsrs_control_header {
	uint32_t kind;
	uint32_t length;
};

/**
 * struct vmsrs_reply_header - Starts every reply.
 * @status: One of the STATUS_ constants.
 * @length: Bytes of payload behind this header; 0 unless the status is
 *	VMSRS_STATUS_OK.
 */
struct vmsrs_reply_header {
	uint32_t status;
	uint32_t length;
};

/**
 * struct vmsrs_open_app - Payload of VMSRS_MESSAGE_OPEN_APP.
 * @name: Name, padded with zero bytes; at least one byte.
 */
struct vmsrs_open_app {
	uint8_t name[VMSRS_NAME_MAX];
};

/**
 * struct vmsrs_app_reply - Reply to VMSRS_MESSAGE_OPEN_APP.
 * @app: The app's number, below VMSRS_MAX_APPS. It fixes the address range.
 * @domains: Domains that exist already.
 */
struct vmsrs_app_reply {
	uint32_t app;
	uint32_t domains;
};

/**
 * struct vmsrs_open_domain - Payload of VMSRS_MESSAGE_OPEN_DOMAIN.
 * @app: The app.
 * @key_length: Bytes of key in use, 1 to VMSRS_KEY_MAX.
 * @key: The key; bytes behind key_length are zero.
 * @flags: VMSRS_DOMAIN_MIRROR or 0. A domain that has a mirror keeps it,
 *	whatever this says.
 */
struct vmsrs_open_domain {
	uint32_t app;
	uint32_t key_length;
	uint8_t key[VMSRS_KEY_MAX];
	uint32_t flags;
};

/**
 * struct vmsrs_domain_reply - Reply to VMSRS_MESSAGE_OPEN_DOMAIN.
 * @domain: The domain's number in its app, below VMSRS_MAX_DOMAINS.
 * @extents: Extents it has; 0 for a new one.
 * @pages: Sealed pages it has.
 * @flags: VMSRS_DOMAIN_MIRROR and VMSRS_DOMAIN_DAMAGED, as they hold.
 */
struct vmsrs_domain_reply {
	uint32_t domain;
	uint32_t extents;
	uint32_t pages;
	uint32_t flags;
};

/**
 * struct vmsrs_list_domain - Payload of VMSRS_MESSAGE_LIST_EXTENTS and
 *	VMSRS_MESSAGE_LIST_PAGES.
 * @app: The app.
 * @domain: The domain.
 * @first: First entry wanted: an extent's index, or a page.
 * @limit: Most entries wanted; the host gives fewer when the reply has no room
 *	for them.
 */
struct vmsrs_list_domain {
	uint32_t app;
	uint32_t domain;
	uint32_t first;
	uint32_t limit;
};

/**
 * struct vmsrs_list_reply - Starts a reply with a list; the entries follow.
 * @count: Entries that follow.
 * @next: first of the next request, or VMSRS_NONE at the end of the list.
 */
struct vmsrs_list_reply {
	uint32_t count;
	uint32_t next;
};

/**
 * struct vmsrs_extent - An extent: consecutive pages that belong to one domain.
 * @page: First page; a multiple of VMSRS_EXTENT_UNIT_PAGES.
 * @pages: Pages; a multiple of VMSRS_EXTENT_UNIT_PAGES, at most
 *	VMSRS_EXTENT_MAX_PAGES.
 */
struct vmsrs_extent {
	uint32_t page;
	uint32_t pages;
};

/**
 * struct vmsrs_page_frame - A page and the frame with its sealed content.
 * @page: The page.
 * @frame: The frame, or VMSRS_DAMAGED_FRAME when its content is lost.
 */
struct vmsrs_page_frame {
	uint32_t page;
	uint32_t frame;
};

/**
 * struct vmsrs_add_extent - Payload of VMSRS_MESSAGE_ADD_EXTENT.
 * @app: The app.
 * @domain: The domain.
 * @index: Index of the extent: at most the number of extents that the domain
 *	has.
 * @pages: Pages wanted, 1 to VMSRS_EXTENT_MAX_PAGES; rounded up to whole units.
 *
 * Extents of a domain are numbered from 0. Asking again for one that exists
 * returns it unchanged, whatever pages says: a request that grew a domain and
 * failed leaves an extent that the next growth finds again.
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
 * struct vmsrs_grant_request - Payload of VMSRS_MESSAGE_GRANT.
 * @frames: Frames wanted. The host grants fewer when the pool's limit or the
 *	free frames say so.
 * @reserved: Reserved.
 */
struct vmsrs_grant_request {
	uint32_t frames;
	uint32_t reserved;
};

/**
 * struct vmsrs_grant_reply - Starts a reply that grants frames; the runs
 *	follow. Granted frames are all zero.
 * @runs: struct vmsrs_frame_run that follow.
 * @reserved: Reserved.
 */
struct vmsrs_grant_reply {
	uint32_t runs;
	uint32_t reserved;
};

/**
 * struct vmsrs_seal_request - Payload of VMSRS_MESSAGE_SEAL; records seal
 *	records follow it.
 * @records: Records that follow; at most batch_records of struct
 *	vmsrs_device_config.
 * @reserved: Reserved.
 */
struct vmsrs_seal_request {
	uint32_t records;
	uint32_t reserved;
};

/**
 * struct vmsrs_seal_reply - Starts the reply to VMSRS_MESSAGE_SEAL; the runs of
 *	granted frames follow.
 * @sealed: Records taken over: sealed, or kept until the rest of their commit
 *	arrives.
 * @refusal: VMSRS_STATUS_OK, or the reason why the commit after sealed records
 *	was refused.
 * @runs: struct vmsrs_frame_run that follow.
 * @reserved: Reserved.
 *
 * A commit is sealed whole or not at all. The host stops at the first commit
 * that it refuses: sealed says how many records before it were taken over,
 * refusal why it was refused.
 */
struct vmsrs_seal_reply {
	uint32_t sealed;
	uint32_t refusal;
	uint32_t runs;
	uint32_t reserved;
};

/**
 * struct vmsrs_discard_request - Payload of VMSRS_MESSAGE_DISCARD; frames frame
 *	numbers of 4 bytes follow it.
 * @frames: Frame numbers that follow.
 * @reserved: Reserved.
 */
struct vmsrs_discard_request {
	uint32_t frames;
	uint32_t reserved;
};

/*
 * Seal records: the payload of VMSRS_MESSAGE_SEAL.
 */

/* Flag of the last record of a commit. */
#define VMSRS_SEAL_LAST 1
/* Most pages in one commit that the host keeps while its records arrive. */
#define VMSRS_COMMIT_PAGES_MAX 0x10000

/**
 * struct vmsrs_seal_record - One page of a commit.
 * @tag: Tag of the request that committed.
 * @app: The app.
 * @domain: The domain that the page belongs to.
 * @page: The page.
 * @old_frame: The frame that held the page before, or VMSRS_NONE if it was
 *	never committed.
 * @new_frame: The granted frame with the new content.
 * @flags: VMSRS_SEAL_LAST or 0.
 *
 * Records of a commit follow each other, carry the same tag, and the last one
 * has VMSRS_SEAL_LAST. A commit may be spread over several messages.
 */
struct vmsrs_seal_record {
	uint64_t tag;
	uint32_t app;
	uint32_t domain;
	uint32_t page;
	uint32_t old_frame;
	uint32_t new_frame;
	uint32_t flags;
};

/*
 * Event queue: what the host reports by itself.
 */

/*
 * The guest's kernel or a process wrote to a frame that it may not write; the
 * second-level page table stopped it.
 */
#define VMSRS_EVENT_SEALED_WRITE 1

/*
 * Frames became free after a grant had been cut short; asking again is worth
 * it.
 */
#define VMSRS_EVENT_FRAMES_FREE 2

/*
 * The content of a sealed page is lost, and no mirror has it: address is the
 * page's, frame the frame that held it. An event of this kind is never dropped.
 */
#define VMSRS_EVENT_DAMAGE 3

/**
 * struct vmsrs_event - One event.
 * @kind: One of the EVENT_ constants.
 * @frame: The frame it is about, or VMSRS_NONE.
 * @incident: The incident's number, or 0.
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

/* SIGSEGV or SIGBUS with no better explanation (for example a null write). */
#define VMSRS_KIND_MEMORY 1
/* SIGFPE (for example an integer division by zero). */
#define VMSRS_KIND_ARITHMETIC 2
/* SIGILL or SIGTRAP. */
#define VMSRS_KIND_INSTRUCTION 3

/*
 * SIGABRT: a failed assertion, glibc's heap checks, stack protector, C++
 * terminate, Rust abort.
 */
#define VMSRS_KIND_ABORT 4

/* The request ran over the guard page below its stack. */
#define VMSRS_KIND_STACK_OVERFLOW 5

/*
 * A write to a page that the request does not hold, refused by the driver:
 * another domain's, or one of the guard pages between domains.
 */
#define VMSRS_KIND_FOREIGN_WRITE 6

/* A write into a sealed frame, stopped by the second-level page table. */
#define VMSRS_KIND_SEALED_WRITE 7
/* A block that was freed already was freed again. */
#define VMSRS_KIND_DOUBLE_FREE 8
/* A pointer that is no block of the domain was freed. */
#define VMSRS_KIND_FOREIGN_FREE 9
/* The audit at commit found bytes behind a block overwritten. */
#define VMSRS_KIND_RED_ZONE 10
/* The audit at commit found a freed block written to. */
#define VMSRS_KIND_USE_AFTER_FREE 11
/* The audit found the heap's own metadata damaged. */
#define VMSRS_KIND_HEAP_CORRUPT 12
/* A Rust panic left the request. */
#define VMSRS_KIND_PANIC 13
/* The request missed its deadline (endless loop, deadlock, sleep). */
#define VMSRS_KIND_DEADLINE 14
/* The thread of a request ended inside it. */
#define VMSRS_KIND_THREAD_DEATH 15
/* The process ended with the request in flight. */
#define VMSRS_KIND_PROCESS_DEATH 16

/*
 * The request wrote to more pages than half of the pool has frames, or the pool
 * stayed dry while it waited to write (for a request that has written to many
 * pages: but for the eighth that it leaves to others).
 */
#define VMSRS_KIND_NO_FRAMES 17

/* The server called the request failed (an invariant of its own). */
#define VMSRS_KIND_INVARIANT 18

/*
 * A read or write of a page that another request was writing, stopped by a
 * protection key.
 */
#define VMSRS_KIND_FOREIGN_DRAFT 19

/* The content of a sealed frame no longer had its checksum. */
#define VMSRS_KIND_CHECKSUM 20
/* The hardware of the host reported the memory behind a frame as broken. */
#define VMSRS_KIND_POISON 21

/*
 * The request touched a page whose sealed content is lost (VMSRS_KIND_CHECKSUM,
 * VMSRS_KIND_POISON).
 */
#define VMSRS_KIND_DAMAGED 22

/* Largest KIND_ constant. */
#define VMSRS_KIND_MAX 22

/*
 * Report flag: address is the address of an access or of a block, even if it is
 * 0.
 */
#define VMSRS_REPORT_ADDRESS 1

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

/* Number of registers in a report; the REG_ constants are their indices. */
#define VMSRS_REGISTERS 18
/* Return addresses in a report, innermost first; unused ones are 0. */
#define VMSRS_BACKTRACE 16

/**
 * struct vmsrs_incident_report - A failed request, as the library and the
 *	driver know it.
 * @incident: Its number, from the driver's range (odd).
 * @tag: Tag of the request.
 * @app: The app.
 * @domain: The first domain that the request held, or VMSRS_NONE.
 * @kind: One of the KIND_ constants.
 * @signal: The signal, or 0.
 * @code: si_code of the signal, or 0.
 * @pid: Process (thread group) in the guest.
 * @tid: Thread in the guest.
 * @drafts: struct vmsrs_dropped_draft that follow the report in its message.
 * @address: Address of the access that failed; meaningless without
 *	VMSRS_REPORT_ADDRESS.
 * @address_domain: Domain that address belongs to, or VMSRS_NONE.
 * @drafts_total: Drafts that were dropped in all; more than drafts when the
 *	report had no room.
 * @recovery_ns: Nanoseconds from the detection in the guest to the end of the
 *	discard.
 * @flags: VMSRS_REPORT_ADDRESS or 0.
 * @reserved: Reserved.
 * @thread_name: Name of the thread, padded with zero bytes.
 * @registers: Registers at the error, see VMSRS_REGISTERS; all zero if there
 *	are none.
 * @backtrace: Return addresses, see VMSRS_BACKTRACE.
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
	uint32_t reserved;
	uint8_t thread_name[16];
	uint64_t registers[VMSRS_REGISTERS];
	uint64_t backtrace[VMSRS_BACKTRACE];
};

/**
 * struct vmsrs_dropped_draft - A draft that was dropped.
 * @domain: The domain.
 * @page: The page.
 * @frame: The draft's frame: granted, now evidence.
 * @committed: The frame with the page's committed content, or VMSRS_NONE if it
 *	never was committed.
 */
struct vmsrs_dropped_draft {
	uint32_t domain;
	uint32_t page;
	uint32_t frame;
	uint32_t committed;
};

/* Most bytes of a stack in struct vmsrs_evidence. */
#define VMSRS_STACK_MAX (16 * 1024)

/*
 * Most bytes of struct vmsrs_module_entry and paths in struct vmsrs_evidence.
 */
#define VMSRS_MODULES_MAX (16 * 1024)

/* Most bytes of a message in struct vmsrs_evidence. */
#define VMSRS_TEXT_MAX 128
/* Longest build ID in bytes; 20 (SHA-1) is usual. */
#define VMSRS_BUILD_ID_MAX 32

/**
 * struct vmsrs_evidence - What the program kept for whoever looks for the bug;
 *	follows the report of its incident in a message of its own. Behind it come
 *	stack_bytes, modules_bytes and text_bytes bytes. The driver takes them from
 *	the program as they are: nobody vouches for their content.
 * @incident: The incident.
 * @stack: Address of the first byte of stack that is kept.
 * @stack_low: First byte of the whole stack; its guard lies below.
 * @stack_high: First byte behind the whole stack.
 * @stack_bytes: Bytes of stack, at most VMSRS_STACK_MAX.
 * @modules_bytes: Bytes of module table, at most VMSRS_MODULES_MAX.
 * @text_bytes: Bytes of message (UTF-8, a panic's for example), at most
 *	VMSRS_TEXT_MAX.
 * @reserved: Reserved.
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
 * struct vmsrs_module_entry - A module (the program, or a library) in a module
 *	table. path_bytes bytes of path follow, then zero bytes up to a multiple of
 *	8.
 * @bias: What the loader added to the addresses in the file.
 * @start: Its first address.
 * @end: First address behind it.
 * @build_id_bytes: Bytes of build_id in use; 0 without one.
 * @path_bytes: Bytes of path that follow.
 * @build_id: The build ID (ELF note NT_GNU_BUILD_ID).
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

/* Most domains that one request can hold at a time. */
#define VMSRS_HELD_MAX 32

/*
 * Bit of a lock word: threads wait in the driver; whoever releases must call
 * VMSRS_IOCTL_LOCK_WAKE.
 */
#define VMSRS_LOCK_WAITERS 0x8000000000000000ULL

/* Mask of a lock word: the tag of the request that holds the domain, or 0. */
#define VMSRS_LOCK_TAG 0x7fffffffffffffff

/**
 * struct vmsrs_thread_control - The control block of one thread: one page,
 *	mapped read-write by the process, read by the driver in its fault handler. A
 *	request that writes nothing tagged begins and ends by changes here alone,
 *	without a system call.
 * @tag: Tag of the request that the thread works for, or 0.
 * @failed: Written by the driver, before it sends the thread's signal: tag of
 *	the request that has failed. A thread that carries this tag must come to its
 *	landing; any other value is of a request that it has left.
 * @deadline_ns: CLOCK_MONOTONIC nanoseconds at which the request is over its
 *	deadline, or 0 for no limit. The driver's watch looks every 10 ms: it is
 *	never early, and late by one period at most. The clock is that of the initial
 *	time namespace.
 * @drafts: Drafts made by this thread in this request: raised by the driver,
 *	set to 0 by the library when a request begins and when it has committed. Not
 *	0 any more once it was raised.
 * @held_count: Entries in use in held.
 * @key: Protection key of the request's drafts, 1 to 15, or 0 for none;
 *	anything else counts as 0. Where the CPU has protection keys, the driver puts
 *	it into the page-table entries of the drafts, so that only threads whose PKRU
 *	opens the key reach them. It is taken from the thread that makes the
 *	request's first draft and stays the request's: another key of another member
 *	changes nothing.
 * @drafts_complement: Complement of drafts, written with it. A request can
 *	overwrite the whole block: if the two do not fit, it may have drafts.
 * @held: Domains that the request holds or is about to lock. Of the threads
 *	that carry a request's tag, one has the list: whichever of them locks or
 *	unlocks a domain, it is entered there before its lock is taken and removed
 *	after it is released, so that a thread's death at any point leaves no lock
 *	behind. VMSRS_IOCTL_SUSPEND takes it over.
 *
 * Written by the library unless said otherwise. The driver trusts nothing in it
 * beyond this thread's own requests: a wrong tag makes writes fail, since the
 * lock word of every domain written must carry the same tag.
 */
struct vmsrs_thread_control {
	uint64_t tag;
	uint64_t failed;
	uint64_t deadline_ns;
	uint32_t drafts;
	uint32_t held_count;
	uint32_t key;
	uint32_t drafts_complement;
	uint32_t held[VMSRS_HELD_MAX];
};

/*
 * ioctl(2) and mmap(2) on /dev/vmsrs.
 *
 * Every ioctl may fail with:
 *
 *   ENODEV  the device is gone, or the host missed a timeout or broke the protocol
 *   EBADFD  no app is open on this file
 *   EINVAL  a field is out of its range
 *   EFAULT  the argument does not point to memory of the caller
 *   EINTR   a signal came while it waited
 *   ENOTTY  no such ioctl
 */

/*
 * Opens the app with struct vmsrs_ioctl_open_app. EBUSY: this file has another
 * app open. ENOSPC: the host has VMSRS_MAX_APPS apps.
 */
#define VMSRS_IOCTL_OPEN_APP 0xc0705601

/*
 * Opens a domain with struct vmsrs_ioctl_open_domain. ENOSPC: the app has
 * VMSRS_MAX_DOMAINS domains, or the window has no room for the mirror.
 */
#define VMSRS_IOCTL_OPEN_DOMAIN 0xc0505602

/*
 * Finds or makes an extent with struct vmsrs_ioctl_extent. ENOMEM: the window
 * is full.
 */
#define VMSRS_IOCTL_EXTENT 0xc0105603

/*
 * Registers the calling thread with struct vmsrs_ioctl_thread. EEXIST: it is
 * registered already. EAGAIN: too many threads.
 */
#define VMSRS_IOCTL_THREAD 0xc0205604

/* Fetches more tags with struct vmsrs_ioctl_tags. */
#define VMSRS_IOCTL_TAGS 0x80105605

/*
 * Commits with struct vmsrs_ioctl_commit. EPERM: the tag is not the calling
 * thread's. ESTALE: the request was failed by the driver (deadline); nothing is
 * committed. ETIMEDOUT: committed, but the host did not seal in time (with
 * VMSRS_COMMIT_SEAL only).
 */
#define VMSRS_IOCTL_COMMIT 0x40105606

/*
 * Fails the calling thread's request with struct vmsrs_ioctl_fail: drafts are
 * discarded, then the locks of its domains are released, the other threads that
 * carry its tag are interrupted (again and again for as long as they carry it),
 * the report goes to the host. When it has failed before, the answer is that
 * incident.
 */
#define VMSRS_IOCTL_FAIL 0xc1805607

/*
 * Discards the calling thread's drafts without an incident, with struct
 * vmsrs_ioctl_tag; locks stay as they are.
 */
#define VMSRS_IOCTL_DISCARD 0x40085608

/*
 * Waits for a domain's lock and takes it, with struct vmsrs_ioctl_lock.
 * ETIMEDOUT: not within the timeout. EINTR: a signal came first. EEXIST: the
 * calling thread's request holds it already. ESTALE: the request has failed.
 * EDEADLK: the holder waits, directly or through other requests, for a domain
 * that the caller's request holds; whoever closes such a circle gets this
 * answer, and the others go on waiting. A request counts as waiting when any of
 * its threads waits. The lock of a request that no thread carries any more and
 * that is not suspended is released when somebody has waited for it for a
 * second, or to the end of a shorter timeout.
 */
#define VMSRS_IOCTL_LOCK_WAIT 0x40105609

/*
 * Wakes the threads that wait for a domain's lock, with struct
 * vmsrs_ioctl_lock.
 */
#define VMSRS_IOCTL_LOCK_WAKE 0x4010560a

/*
 * Sends the seal batch now and waits until everything committed before is
 * sealed. No argument. ETIMEDOUT: the host did not answer in time.
 */
#define VMSRS_IOCTL_FLUSH 0x560b

/* Reads the driver's state with struct vmsrs_ioctl_info. */
#define VMSRS_IOCTL_INFO 0x8040560c

/*
 * Unregisters the calling thread; a request it still has is failed
 * (VMSRS_KIND_THREAD_DEATH). No argument. ENOENT: it is not registered.
 */
#define VMSRS_IOCTL_THREAD_EXIT 0x560d

/*
 * Sets the calling thread's request aside, with struct vmsrs_ioctl_suspend: its
 * drafts and the domains in the thread's held stay its own without any thread
 * that carries its tag. The caller clears its control block afterwards. EPERM:
 * the tag is not the calling thread's. ESTALE: the request has failed.
 * EALREADY: it is suspended already. EAGAIN: VMSRS_SUSPENDED_MAX requests are
 * suspended through this file.
 *
 * A suspended request that misses its deadline is failed by the driver: its
 * drafts are gone and its locks free at once, and its tag is remembered until
 * VMSRS_IOCTL_RESUME or VMSRS_IOCTL_ABANDON. When the last reference to the
 * file through which it was suspended goes, it is failed
 * (VMSRS_KIND_PROCESS_DEATH).
 */
#define VMSRS_IOCTL_SUSPEND 0x4010560e

/*
 * Takes a suspended request up again, with struct vmsrs_ioctl_tag. The calling
 * thread carries its tag and has its domains in held already. ENOENT: no such
 * request was suspended through this file. ESTALE: it has failed meanwhile;
 * VMSRS_IOCTL_FAIL gives the incident.
 */
#define VMSRS_IOCTL_RESUME 0x4008560f

/*
 * Gives a suspended request up, with struct vmsrs_ioctl_tag: drafts are
 * discarded, then its locks are released. The calling thread need not be
 * registered. ENOENT: as for VMSRS_IOCTL_RESUME.
 */
#define VMSRS_IOCTL_ABANDON 0x40085610

/*
 * Lists the pages of a domain that the calling thread's request has drafts of,
 * with struct vmsrs_ioctl_drafts, in the order in which they were first
 * written. EPERM: the tag is not the calling thread's.
 */
#define VMSRS_IOCTL_DRAFTS 0xc0205611

/* mmap offset of app n's pages: n << APP_OFFSET_SHIFT. */
#define VMSRS_APP_OFFSET_SHIFT 40

/*
 * mmap offset of the first thread's control page; struct vmsrs_ioctl_thread
 * gives each thread's own.
 */
#define VMSRS_CONTROL_OFFSET 0x4000000000000

/*
 * mmap offset of the opened app's lock words: one u64 a domain, indexed by
 * domain.
 */
#define VMSRS_LOCKS_OFFSET 0x8000000000000

/*
 * Bytes of lock words that may be mapped: VMSRS_MAX_DOMAINS words of 8 bytes.
 */
#define VMSRS_LOCKS_LENGTH 0x800000

/* Commit flag: return when the host has sealed the commit. */
#define VMSRS_COMMIT_SEAL 1
/* Most requests that are suspended through one open file at a time. */
#define VMSRS_SUSPENDED_MAX 4096
/* Most pages that one VMSRS_IOCTL_DRAFTS answers with. */
#define VMSRS_DRAFTS_MAX 1024

/**
 * struct vmsrs_ioctl_open_app - Argument of VMSRS_IOCTL_OPEN_APP.
 * @name: In: name, padded with zero bytes; at least one byte.
 * @base: Out: address where the pages must be mapped (with
 *	MAP_FIXED_NOREPLACE).
 * @length: Out: bytes of address range.
 * @pages_offset: Out: mmap offset of the pages. Map shared, readable and
 *	writable.
 * @locks_offset: Out: mmap offset of the lock words.
 * @locks_length: Out: bytes of lock words.
 * @abi_version: In: VMSRS_ABI_VERSION of the library.
 * @app: Out: the app's number.
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
};

/**
 * struct vmsrs_ioctl_open_domain - Argument of VMSRS_IOCTL_OPEN_DOMAIN.
 * @key: In: the key; bytes behind key_length are zero.
 * @key_length: In: bytes of key in use.
 * @domain: Out: the domain's number, the index of its lock word.
 * @extents: Out: extents it has; 0 for a new one.
 * @flags: In: VMSRS_DOMAIN_MIRROR or 0. Out: the domain's flags.
 */
struct vmsrs_ioctl_open_domain {
	uint8_t key[VMSRS_KEY_MAX];
	uint32_t key_length;
	uint32_t domain;
	uint32_t extents;
	uint32_t flags;
};

/**
 * struct vmsrs_ioctl_extent - Argument of VMSRS_IOCTL_EXTENT.
 * @domain: In: the domain.
 * @index: In: index of the extent, at most the number of extents that the
 *	domain has.
 * @pages: In: pages wanted if it does not exist yet. Out: pages it has.
 * @page: Out: its first page.
 */
struct vmsrs_ioctl_extent {
	uint32_t domain;
	uint32_t index;
	uint32_t pages;
	uint32_t page;
};

/**
 * struct vmsrs_ioctl_thread - Argument of VMSRS_IOCTL_THREAD.
 * @control_offset: Out: mmap offset of the thread's control page (struct
 *	vmsrs_thread_control).
 * @tag_first: Out: first tag that this thread may use.
 * @tag_count: Out: how many consecutive tags it may use.
 * @signal: In: signal that interrupts the thread when its request must end
 *	(deadline, failure of another member); 0 for none.
 * @reserved: Reserved.
 */
struct vmsrs_ioctl_thread {
	uint64_t control_offset;
	uint64_t tag_first;
	uint64_t tag_count;
	uint32_t signal;
	uint32_t reserved;
};

/**
 * struct vmsrs_ioctl_tags - Argument of VMSRS_IOCTL_TAGS.
 * @tag_first: Out: first tag.
 * @tag_count: Out: how many.
 */
struct vmsrs_ioctl_tags {
	uint64_t tag_first;
	uint64_t tag_count;
};

/**
 * struct vmsrs_ioctl_commit - Argument of VMSRS_IOCTL_COMMIT.
 * @tag: In: the request's tag.
 * @flags: In: VMSRS_COMMIT_SEAL or 0.
 * @domain: In: the one domain to commit, or VMSRS_NONE for all that the request
 *	has drafts in.
 */
struct vmsrs_ioctl_commit {
	uint64_t tag;
	uint32_t flags;
	uint32_t domain;
};

/**
 * struct vmsrs_ioctl_fail - Argument of VMSRS_IOCTL_FAIL.
 * @incident: Out: number of the incident.
 * @tag: In: the request's tag.
 * @detected_ns: In: CLOCK_MONOTONIC nanoseconds at the detection, or 0.
 * @recovery_ns: Out: nanoseconds from the detection to the end of the discard.
 * @address: In: address of the access that failed; meaningless without
 *	VMSRS_REPORT_ADDRESS.
 * @kind: In: one of the KIND_ constants; VMSRS_KIND_MEMORY is refined by the
 *	driver (VMSRS_KIND_FOREIGN_WRITE, VMSRS_KIND_FOREIGN_DRAFT,
 *	VMSRS_KIND_SEALED_WRITE, VMSRS_KIND_NO_FRAMES, VMSRS_KIND_DEADLINE). Out: the
 *	kind in the report.
 * @signal: In: the signal, or 0.
 * @code: In: si_code, or 0.
 * @drafts: Out: drafts of the request that were dropped, by this call and by
 *	those before it: another member's, or the driver's own when the request was
 *	overdue.
 * @registers: In: registers, see VMSRS_REGISTERS.
 * @backtrace: In: return addresses, see VMSRS_BACKTRACE.
 * @stack: In: address of the bytes of stack to keep as evidence. Evidence is
 *	read when the drafts are gone and the locks are free; what cannot be read is
 *	left out.
 * @stack_low: In: first byte of the whole stack.
 * @stack_high: In: first byte behind the whole stack.
 * @modules: In: address of the module table (struct vmsrs_module_entry).
 * @text: In: address of the message.
 * @stack_bytes: In: bytes of stack, at most VMSRS_STACK_MAX.
 * @modules_bytes: In: bytes of module table, at most VMSRS_MODULES_MAX.
 * @text_bytes: In: bytes of message, at most VMSRS_TEXT_MAX.
 * @flags: In: VMSRS_REPORT_ADDRESS or 0.
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
};

/**
 * struct vmsrs_ioctl_suspend - Argument of VMSRS_IOCTL_SUSPEND.
 * @tag: In: the request's tag.
 * @deadline_ns: In: CLOCK_MONOTONIC nanoseconds at which it is over its
 *	deadline, or 0 for no limit.
 */
struct vmsrs_ioctl_suspend {
	uint64_t tag;
	uint64_t deadline_ns;
};

/**
 * struct vmsrs_ioctl_tag - Argument of VMSRS_IOCTL_DISCARD, VMSRS_IOCTL_RESUME
 *	and VMSRS_IOCTL_ABANDON.
 * @tag: In: the request's tag.
 */
struct vmsrs_ioctl_tag {
	uint64_t tag;
};

/**
 * struct vmsrs_ioctl_lock - Argument of VMSRS_IOCTL_LOCK_WAIT and
 *	VMSRS_IOCTL_LOCK_WAKE.
 * @tag: In: the tag that takes the lock; ignored by VMSRS_IOCTL_LOCK_WAKE.
 * @domain: In: the domain.
 * @timeout_ms: In: most milliseconds to wait, 1 to 3,600,000; ignored by
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
 * @pages: In: address of room for capacity page numbers of 32 bits.
 * @domain: In: the domain.
 * @skip: In: pages to leave out at the front.
 * @capacity: In: most pages to list, 1 to VMSRS_DRAFTS_MAX.
 * @count: Out: pages listed.
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
 * @window_frames: Frames in the window.
 * @pool_frames: Most frames that the driver may hold as granted.
 * @pool_free: Frames free in the driver's pool.
 * @drafts: Drafts of all requests.
 * @unsealed: Pages committed and not yet sealed.
 * @broken: 1 if the host broke the protocol or a timeout; nothing can be
 *	written then.
 * @commits: Commits with at least one page since the driver was loaded.
 * @sealed_pages: Pages sealed.
 * @discarded: Drafts discarded.
 * @incidents: Incidents reported by the driver.
 * @seal_messages: Seal messages sent; with commits this tells how rare exits
 *	are.
 */
struct vmsrs_ioctl_info {
	uint32_t window_frames;
	uint32_t pool_frames;
	uint32_t pool_free;
	uint32_t drafts;
	uint32_t unsealed;
	uint32_t broken;
	uint64_t commits;
	uint64_t sealed_pages;
	uint64_t discarded;
	uint64_t incidents;
	uint64_t seal_messages;
};

#endif /* VMSRS_PROTOCOL_H */
