/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT */
/*
 * What the host, the driver and the guest library of VMSRS say to each other.
 *
 * Generated from the crate in protocol/ by cbindgen: do not edit, run `make headers`.
 * All fields are little-endian.
 */

#ifndef VMSRS_PROTOCOL_H
#define VMSRS_PROTOCOL_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdint.h>
#endif

// Bytes in a frame and in a page.
#define VMSRS_PAGE_SIZE 4096

// Number of the frame that is all zeros for ever: the content of every page that was never
// committed. It is sealed from the start and never granted.
#define VMSRS_ZERO_FRAME 0

// "No frame", "no page" or "no domain", where a field of that kind may be empty.
#define VMSRS_NONE 4294967295

// In a list of sealed pages: the page's content is lost. No window has a frame of this number.
#define VMSRS_DAMAGED_FRAME 4294967294

// Pages of a domain come in extents whose length is a multiple of this many pages and whose first
// page is a multiple of it too, so that page → domain is one look-up per unit.
#define VMSRS_EXTENT_UNIT_PAGES 4

// Most pages in one extent (4 MiB).
#define VMSRS_EXTENT_MAX_PAGES 1024

// Address of the first app's first page, in every process that opens it. App `n` lies
// `n * APP_PAGES * PAGE_SIZE` bytes above.
#define VMSRS_APP_BASE 17592186044416

// Pages in an app's address range (1 TiB).
#define VMSRS_APP_PAGES 268435456

// Most apps in one virtual machine; keeps every app's range below the addresses that Linux gives
// to programs, stacks and libraries.
#define VMSRS_MAX_APPS 64

// Most domains of one app.
#define VMSRS_MAX_DOMAINS 1048576

// Longest app name in bytes.
#define VMSRS_NAME_MAX 64

// Longest domain key in bytes.
#define VMSRS_KEY_MAX 64

// [`OpenApp`] → [`AppReply`]: finds or makes an app by name.
#define VMSRS_MESSAGE_OPEN_APP 1

// [`OpenDomain`] → [`DomainReply`]: finds or makes a domain of an app by key.
#define VMSRS_MESSAGE_OPEN_DOMAIN 2

// [`ListDomain`] → [`ListReply`] and [`Extent`]s: the domain's extents in order of their index.
#define VMSRS_MESSAGE_LIST_EXTENTS 3

// [`ListDomain`] → [`ListReply`] and [`PageFrame`]s: the domain's sealed pages in order of page.
#define VMSRS_MESSAGE_LIST_PAGES 4

// [`AddExtent`] → [`ExtentReply`]: the extent with that index, made if it does not exist.
#define VMSRS_MESSAGE_ADD_EXTENT 5

// [`GrantRequest`] → [`GrantReply`] and [`FrameRun`]s: frames for the driver's pool.
#define VMSRS_MESSAGE_GRANT 6

// [`SealRequest`] and [`crate::seal::SealRecord`]s → [`SealReply`] and [`FrameRun`]s: committed
// pages become the authority; new frames come in exchange for the retired ones.
#define VMSRS_MESSAGE_SEAL 7

// [`crate::incident::IncidentReport`] and [`crate::incident::DroppedDraft`]s → [`GrantReply`] and
// [`FrameRun`]s: a request failed; its drafts are evidence, then cleansed.
#define VMSRS_MESSAGE_INCIDENT 8

// [`DiscardRequest`] and frame numbers (`u32` each) → [`GrantReply`] and [`FrameRun`]s: drafts
// dropped without an error; cleansed.
#define VMSRS_MESSAGE_DISCARD 9

// [`crate::incident::Evidence`] and its bytes → nothing: belongs to an incident that was reported
// before. That of an incident which is not kept is dropped.
#define VMSRS_MESSAGE_EVIDENCE 10

// The message was carried out.
#define VMSRS_STATUS_OK 0

// The bytes are no message: too short, wrong length, a field out of its range.
#define VMSRS_STATUS_MALFORMED 1

// The kind of message is not known.
#define VMSRS_STATUS_UNKNOWN 2

// The window, or a table of the host, is full.
#define VMSRS_STATUS_NO_SPACE 3

// No such app, domain or extent.
#define VMSRS_STATUS_NOT_FOUND 4

// A frame that is not granted, or a page that is not the domain's.
#define VMSRS_STATUS_NOT_OWNER 5

// The record's old frame is not the page's sealed frame.
#define VMSRS_STATUS_STALE 6

// The host could not carry the message out (its own operating system refused).
#define VMSRS_STATUS_HOST_ERROR 7

// Flag of a domain: the host keeps a second copy of each sealed page. The copies take room of the
// window, as much as the pages.
#define VMSRS_DOMAIN_MIRROR 1

// Flag of a domain: the content of some sealed page is lost ([`crate::DAMAGED_FRAME`]).
#define VMSRS_DOMAIN_DAMAGED 2

// Most [`FrameRun`]s in one reply.
#define VMSRS_REPLY_RUNS_MAX 64

// Largest message or reply in bytes, headers included; the host refuses longer chains unread.
#define VMSRS_MESSAGE_BYTES_MAX 65536

// Virtio device ID. Not assigned by OASIS; chosen outside the range that is being assigned
// (Virtio 1.2, section 5).
#define VMSRS_DEVICE_ID 22099

// Virtio vendor ID ("VSRS").
#define VMSRS_VENDOR_ID 1397904214

// Version of everything in this crate. Both sides refuse any other.
#define VMSRS_ABI_VERSION 3

// Feature bit: the device has an event queue.
#define VMSRS_FEATURE_EVENTS 0

// Index of the queue with requests of the driver and the host's answers.
#define VMSRS_QUEUE_CONTROL 0

// Index of the queue with buffers for what the host reports by itself.
#define VMSRS_QUEUE_EVENT 1

// Number of queues.
#define VMSRS_QUEUE_COUNT 2

// Size of each queue in descriptors.
#define VMSRS_QUEUE_SIZE 64

// Shared memory region ID of the window (Virtio 1.2, 2.10 and 4.2.2).
#define VMSRS_SHM_WINDOW 0

// The guest's kernel or a process wrote to a frame that it may not write; the second-level page
// table stopped it.
#define VMSRS_EVENT_SEALED_WRITE 1

// Frames became free after a grant had been cut short; asking again is worth it.
#define VMSRS_EVENT_FRAMES_FREE 2

// The content of a sealed page is lost, and no mirror has it: `address` is the page's, `frame` the
// frame that held it. An event of this kind is never dropped.
#define VMSRS_EVENT_DAMAGE 3

// SIGSEGV or SIGBUS with no better explanation (for example a null write).
#define VMSRS_KIND_MEMORY 1

// SIGFPE (for example an integer division by zero).
#define VMSRS_KIND_ARITHMETIC 2

// SIGILL or SIGTRAP.
#define VMSRS_KIND_INSTRUCTION 3

// SIGABRT: a failed assertion, glibc's heap checks, stack protector, C++ terminate, Rust abort.
#define VMSRS_KIND_ABORT 4

// The request ran over the guard page below its stack.
#define VMSRS_KIND_STACK_OVERFLOW 5

// A write to a page that the request does not hold, refused by the driver: another domain's, or one
// of the guard pages between domains.
#define VMSRS_KIND_FOREIGN_WRITE 6

// A write into a sealed frame, stopped by the second-level page table.
#define VMSRS_KIND_SEALED_WRITE 7

// A block that was freed already was freed again.
#define VMSRS_KIND_DOUBLE_FREE 8

// A pointer that is no block of the domain was freed.
#define VMSRS_KIND_FOREIGN_FREE 9

// The audit at commit found bytes behind a block overwritten.
#define VMSRS_KIND_RED_ZONE 10

// The audit at commit found a freed block written to.
#define VMSRS_KIND_USE_AFTER_FREE 11

// The audit found the heap's own metadata damaged.
#define VMSRS_KIND_HEAP_CORRUPT 12

// A Rust panic left the request.
#define VMSRS_KIND_PANIC 13

// The request missed its deadline (endless loop, deadlock, sleep).
#define VMSRS_KIND_DEADLINE 14

// The thread of a request ended inside it.
#define VMSRS_KIND_THREAD_DEATH 15

// The process ended with the request in flight.
#define VMSRS_KIND_PROCESS_DEATH 16

// The request wrote to more pages than half of the pool has frames, or the pool stayed dry while it
// waited to write (for a request that has written to many pages: but for the eighth that it leaves to
// others).
#define VMSRS_KIND_NO_FRAMES 17

// The server called the request failed (an invariant of its own).
#define VMSRS_KIND_INVARIANT 18

// A read or write of a page that another request was writing, stopped by a protection key.
#define VMSRS_KIND_FOREIGN_DRAFT 19

// The content of a sealed frame no longer had its checksum.
#define VMSRS_KIND_CHECKSUM 20

// The hardware of the host reported the memory behind a frame as broken.
#define VMSRS_KIND_POISON 21

// The request touched a page whose sealed content is lost ([`KIND_CHECKSUM`], [`KIND_POISON`]).
#define VMSRS_KIND_DAMAGED 22

// Largest `KIND_` constant.
#define VMSRS_KIND_MAX 22

// Index of RAX in a report's registers.
#define VMSRS_REG_RAX 0

// Index of RBX in a report's registers.
#define VMSRS_REG_RBX 1

// Index of RCX in a report's registers.
#define VMSRS_REG_RCX 2

// Index of RDX in a report's registers.
#define VMSRS_REG_RDX 3

// Index of RSI in a report's registers.
#define VMSRS_REG_RSI 4

// Index of RDI in a report's registers.
#define VMSRS_REG_RDI 5

// Index of RBP in a report's registers.
#define VMSRS_REG_RBP 6

// Index of RSP in a report's registers.
#define VMSRS_REG_RSP 7

// Index of R8 in a report's registers.
#define VMSRS_REG_R8 8

// Index of R9 in a report's registers.
#define VMSRS_REG_R9 9

// Index of R10 in a report's registers.
#define VMSRS_REG_R10 10

// Index of R11 in a report's registers.
#define VMSRS_REG_R11 11

// Index of R12 in a report's registers.
#define VMSRS_REG_R12 12

// Index of R13 in a report's registers.
#define VMSRS_REG_R13 13

// Index of R14 in a report's registers.
#define VMSRS_REG_R14 14

// Index of R15 in a report's registers.
#define VMSRS_REG_R15 15

// Index of RIP in a report's registers.
#define VMSRS_REG_RIP 16

// Index of RFLAGS in a report's registers.
#define VMSRS_REG_RFLAGS 17

// Number of registers in a report; the `REG_` constants are their indices.
#define VMSRS_REGISTERS 18

// Return addresses in a report, innermost first; unused ones are 0.
#define VMSRS_BACKTRACE 16

// Report flag: `address` is the address of an access or of a block, even if it is 0.
#define VMSRS_REPORT_ADDRESS 1

// Most bytes of a stack in [`Evidence`].
#define VMSRS_STACK_MAX (16 * 1024)

// Most bytes of [`ModuleEntry`]s and paths in [`Evidence`].
#define VMSRS_MODULES_MAX (16 * 1024)

// Most bytes of a message in [`Evidence`].
#define VMSRS_TEXT_MAX 128

// Longest build ID in bytes; 20 (SHA-1) is usual.
#define VMSRS_BUILD_ID_MAX 32

// Opens the app with [`IoctlOpenApp`]. `EBUSY`: this file has another app open. `ENOSPC`: the host
// has [`crate::MAX_APPS`] apps.
#define VMSRS_IOCTL_OPEN_APP 3228587521

// Opens a domain with [`IoctlOpenDomain`]. `ENOSPC`: the app has [`crate::MAX_DOMAINS`] domains,
// or the window has no room for the mirror.
#define VMSRS_IOCTL_OPEN_DOMAIN 3226490370

// Finds or makes an extent with [`IoctlExtent`]. `ENOMEM`: the window is full.
#define VMSRS_IOCTL_EXTENT 3222296067

// Registers the calling thread with [`IoctlThread`]. `EEXIST`: it is registered already.
// `EAGAIN`: too many threads.
#define VMSRS_IOCTL_THREAD 3223344644

// Fetches more tags with [`IoctlTags`].
#define VMSRS_IOCTL_TAGS 2148554245

// Commits with [`IoctlCommit`]. `EPERM`: the tag is not the calling thread's. `ESTALE`: the request
// was failed by the driver (deadline); nothing is committed. `ETIMEDOUT`: committed, but the host
// did not seal in time (with [`COMMIT_SEAL`] only).
#define VMSRS_IOCTL_COMMIT 1074812422

// Fails the calling thread's request with [`IoctlFail`]: drafts are discarded, then the locks of
// its domains are released, the other threads that carry its tag are interrupted (again and again
// for as long as they carry it), the report goes to the host. When it has failed before, the answer
// is that incident.
#define VMSRS_IOCTL_FAIL 3246413319

// Discards the calling thread's drafts without an incident, with [`IoctlTag`]; locks stay as they
// are.
#define VMSRS_IOCTL_DISCARD 1074288136

// Waits for a domain's lock and takes it, with [`IoctlLock`]. `ETIMEDOUT`: not within the timeout.
// `EINTR`: a signal came first. `EEXIST`: the calling thread's request holds it already. `ESTALE`:
// the request has failed. `EDEADLK`: the holder waits, directly or through other requests, for a
// domain that the caller's request holds; whoever closes such a circle gets this answer, and the
// others go on waiting. A request counts as waiting when any of its threads waits. The lock of a
// request that no thread carries any more and that is not suspended is released when somebody has
// waited for it for a second, or to the end of a shorter timeout.
#define VMSRS_IOCTL_LOCK_WAIT 1074812425

// Wakes the threads that wait for a domain's lock, with [`IoctlLock`].
#define VMSRS_IOCTL_LOCK_WAKE 1074812426

// Sends the seal batch now and waits until everything committed before is sealed. No argument.
// `ETIMEDOUT`: the host did not answer in time.
#define VMSRS_IOCTL_FLUSH 22027

// Reads the driver's state with [`IoctlInfo`].
#define VMSRS_IOCTL_INFO 2151699980

// Unregisters the calling thread; a request it still has is failed
// ([`crate::incident::KIND_THREAD_DEATH`]). No argument. `ENOENT`: it is not registered.
#define VMSRS_IOCTL_THREAD_EXIT 22029

// Sets the calling thread's request aside, with [`IoctlSuspend`]: its drafts and the domains in the
// thread's `held` stay its own without any thread that carries its tag. The caller clears its
// control block afterwards. `EPERM`: the tag is not the calling thread's. `ESTALE`: the request has
// failed. `EALREADY`: it is suspended already. `EAGAIN`: [`SUSPENDED_MAX`] requests are suspended
// through this file.
//
// A suspended request that misses its deadline is failed by the driver: its drafts are gone and its
// locks free at once, and its tag is remembered until [`IOCTL_RESUME`] or [`IOCTL_ABANDON`]. When
// the last reference to the file through which it was suspended goes, it is failed
// ([`crate::incident::KIND_PROCESS_DEATH`]).
#define VMSRS_IOCTL_SUSPEND 1074812430

// Takes a suspended request up again, with [`IoctlTag`]. The calling thread carries its tag and
// has its domains in `held` already. `ENOENT`: no such request was suspended through this file.
// `ESTALE`: it has failed meanwhile; [`IOCTL_FAIL`] gives the incident.
#define VMSRS_IOCTL_RESUME 1074288143

// Gives a suspended request up, with [`IoctlTag`]: drafts are discarded, then its locks are
// released. The calling thread need not be registered. `ENOENT`: as for [`IOCTL_RESUME`].
#define VMSRS_IOCTL_ABANDON 1074288144

// Lists the pages of a domain that the calling thread's request has drafts of, with [`IoctlDrafts`],
// in the order in which they were first written. `EPERM`: the tag is not the calling thread's.
#define VMSRS_IOCTL_DRAFTS 3223344657

// `mmap` offset of app `n`'s pages: `n << APP_OFFSET_SHIFT`.
#define VMSRS_APP_OFFSET_SHIFT 40

// `mmap` offset of the first thread's control page; [`IoctlThread`] gives each thread's own.
#define VMSRS_CONTROL_OFFSET 1125899906842624

// `mmap` offset of the opened app's lock words: one `u64` a domain, indexed by domain.
#define VMSRS_LOCKS_OFFSET 2251799813685248

// Bytes of lock words that may be mapped: [`crate::MAX_DOMAINS`] words of 8 bytes.
#define VMSRS_LOCKS_LENGTH 8388608

// Commit flag: return when the host has sealed the commit.
#define VMSRS_COMMIT_SEAL 1

// Most requests that are suspended through one open file at a time.
#define VMSRS_SUSPENDED_MAX 4096

// Most pages that one [`IOCTL_DRAFTS`] answers with.
#define VMSRS_DRAFTS_MAX 1024

// Flag of the last record of a commit.
#define VMSRS_SEAL_LAST 1

// Most pages in one commit that the host keeps while its records arrive.
#define VMSRS_COMMIT_PAGES_MAX 65536

// Most domains that one request can hold at a time.
#define VMSRS_HELD_MAX 32

// Bit of a lock word: threads wait in the driver; whoever releases must call
// [`crate::ioctl::IOCTL_LOCK_WAKE`].
#define VMSRS_LOCK_WAITERS 9223372036854775808ull

// Mask of a lock word: the tag of the request that holds the domain, or 0.
#define VMSRS_LOCK_TAG 9223372036854775807

// A run of consecutive frames.
struct vmsrs_frame_run {
  // First frame.
  uint32_t start;
  // Number of frames, at least one.
  uint32_t count;
};

// The device's configuration space; read-only for the driver.
struct vmsrs_device_config {
  // [`ABI_VERSION`] of the device.
  uint32_t abi_version;
  // Frames in the window, [`crate::ZERO_FRAME`] included.
  uint32_t window_frames;
  // Most frames that the driver may hold as granted (free in its pool, in drafts, or committed
  // and not yet sealed).
  uint32_t pool_frames;
  // Most records in one seal message.
  uint32_t batch_records;
  // First tag of this boot; tags below it belong to earlier boots. Below 2^62.
  uint64_t tag_base;
  // First incident number that the driver may use in this boot; odd. The driver counts on in
  // steps of two, the host numbers its own incidents with even numbers.
  uint64_t incident_base;
};

// Starts every message to the host.
struct vmsrs_control_header {
  // One of the `MESSAGE_` constants.
  uint32_t kind;
  // Bytes of payload behind this header.
  uint32_t length;
};

// Starts every reply.
struct vmsrs_reply_header {
  // One of the `STATUS_` constants.
  uint32_t status;
  // Bytes of payload behind this header; 0 unless the status is [`STATUS_OK`].
  uint32_t length;
};

// Payload of [`MESSAGE_OPEN_APP`].
struct vmsrs_open_app {
  // Name, padded with zero bytes; at least one byte.
  uint8_t name[VMSRS_NAME_MAX];
};

// Reply to [`MESSAGE_OPEN_APP`].
struct vmsrs_app_reply {
  // The app's number, below [`crate::MAX_APPS`]. It fixes the address range.
  uint32_t app;
  // Domains that exist already.
  uint32_t domains;
};

// Payload of [`MESSAGE_OPEN_DOMAIN`].
struct vmsrs_open_domain {
  // The app.
  uint32_t app;
  // Bytes of `key` in use, 1 to [`KEY_MAX`].
  uint32_t key_length;
  // The key; bytes behind `key_length` are zero.
  uint8_t key[VMSRS_KEY_MAX];
  // [`DOMAIN_MIRROR`] or 0. A domain that has a mirror keeps it, whatever this says.
  uint32_t flags;
};

// Reply to [`MESSAGE_OPEN_DOMAIN`].
struct vmsrs_domain_reply {
  // The domain's number in its app, below [`crate::MAX_DOMAINS`].
  uint32_t domain;
  // Extents it has; 0 for a new one.
  uint32_t extents;
  // Sealed pages it has.
  uint32_t pages;
  // [`DOMAIN_MIRROR`] and [`DOMAIN_DAMAGED`], as they hold.
  uint32_t flags;
};

// Payload of [`MESSAGE_LIST_EXTENTS`] and [`MESSAGE_LIST_PAGES`].
struct vmsrs_list_domain {
  // The app.
  uint32_t app;
  // The domain.
  uint32_t domain;
  // First entry wanted: an extent's index, or a page.
  uint32_t first;
  // Most entries wanted; the host gives fewer when the reply has no room for them.
  uint32_t limit;
};

// Starts a reply with a list; the entries follow.
struct vmsrs_list_reply {
  // Entries that follow.
  uint32_t count;
  // `first` of the next request, or [`crate::NONE`] at the end of the list.
  uint32_t next;
};

// An extent: consecutive pages that belong to one domain.
struct vmsrs_extent {
  // First page; a multiple of [`crate::EXTENT_UNIT_PAGES`].
  uint32_t page;
  // Pages; a multiple of [`crate::EXTENT_UNIT_PAGES`], at most [`crate::EXTENT_MAX_PAGES`].
  uint32_t pages;
};

// A page and the frame with its sealed content.
struct vmsrs_page_frame {
  // The page.
  uint32_t page;
  // The frame, or [`crate::DAMAGED_FRAME`] when its content is lost.
  uint32_t frame;
};

// Payload of [`MESSAGE_ADD_EXTENT`].
//
// Extents of a domain are numbered from 0. Asking again for one that exists returns it unchanged,
// whatever `pages` says: a request that grew a domain and failed leaves an extent that the next
// growth finds again.
struct vmsrs_add_extent {
  // The app.
  uint32_t app;
  // The domain.
  uint32_t domain;
  // Index of the extent: at most the number of extents that the domain has.
  uint32_t index;
  // Pages wanted, 1 to [`crate::EXTENT_MAX_PAGES`]; rounded up to whole units.
  uint32_t pages;
};

// Payload of [`MESSAGE_GRANT`].
struct vmsrs_grant_request {
  // Frames wanted. The host grants fewer when the pool's limit or the free frames say so.
  uint32_t frames;
  // Reserved.
  uint32_t reserved;
};

// Starts a reply that grants frames; the runs follow. Granted frames are all zero.
struct vmsrs_grant_reply {
  // [`FrameRun`]s that follow.
  uint32_t runs;
  // Reserved.
  uint32_t reserved;
};

// Payload of [`MESSAGE_SEAL`]; `records` seal records follow it.
struct vmsrs_seal_request {
  // Records that follow; at most [`crate::device::DeviceConfig::batch_records`].
  uint32_t records;
  // Reserved.
  uint32_t reserved;
};

// Starts the reply to [`MESSAGE_SEAL`]; the runs of granted frames follow.
//
// A commit is sealed whole or not at all. The host stops at the first commit that it refuses:
// `sealed` says how many records before it were taken over, `refusal` why it was refused.
struct vmsrs_seal_reply {
  // Records taken over: sealed, or kept until the rest of their commit arrives.
  uint32_t sealed;
  // [`STATUS_OK`], or the reason why the commit after `sealed` records was refused.
  uint32_t refusal;
  // [`FrameRun`]s that follow.
  uint32_t runs;
  // Reserved.
  uint32_t reserved;
};

// Payload of [`MESSAGE_DISCARD`]; `frames` frame numbers of 4 bytes follow it.
struct vmsrs_discard_request {
  // Frame numbers that follow.
  uint32_t frames;
  // Reserved.
  uint32_t reserved;
};

// One page of a commit.
//
// Records of a commit follow each other, carry the same tag, and the last one has
// [`SEAL_LAST`]. A commit may be spread over several messages.
struct vmsrs_seal_record {
  // Tag of the request that committed.
  uint64_t tag;
  // The app.
  uint32_t app;
  // The domain that the page belongs to.
  uint32_t domain;
  // The page.
  uint32_t page;
  // The frame that held the page before, or [`crate::NONE`] if it was never committed.
  uint32_t old_frame;
  // The granted frame with the new content.
  uint32_t new_frame;
  // [`SEAL_LAST`] or 0.
  uint32_t flags;
};

// One event.
struct vmsrs_event {
  // One of the `EVENT_` constants.
  uint32_t kind;
  // The frame it is about, or [`crate::NONE`].
  uint32_t frame;
  // The incident's number, or 0.
  uint64_t incident;
  // Guest virtual address of the access, or 0.
  uint64_t address;
  // Guest instruction pointer, or 0.
  uint64_t instruction;
  // The virtual CPU, or [`crate::NONE`].
  uint32_t vcpu;
  // Reserved.
  uint32_t reserved;
};

// A failed request, as the library and the driver know it.
struct vmsrs_incident_report {
  // Its number, from the driver's range (odd).
  uint64_t incident;
  // Tag of the request.
  uint64_t tag;
  // The app.
  uint32_t app;
  // The first domain that the request held, or [`crate::NONE`].
  uint32_t domain;
  // One of the `KIND_` constants.
  uint32_t kind;
  // The signal, or 0.
  int32_t signal;
  // `si_code` of the signal, or 0.
  int32_t code;
  // Process (thread group) in the guest.
  uint32_t pid;
  // Thread in the guest.
  uint32_t tid;
  // [`DroppedDraft`]s that follow the report in its message.
  uint32_t drafts;
  // Address of the access that failed; meaningless without [`REPORT_ADDRESS`].
  uint64_t address;
  // Domain that `address` belongs to, or [`crate::NONE`].
  uint32_t address_domain;
  // Drafts that were dropped in all; more than `drafts` when the report had no room.
  uint32_t drafts_total;
  // Nanoseconds from the detection in the guest to the end of the discard.
  uint64_t recovery_ns;
  // [`REPORT_ADDRESS`] or 0.
  uint32_t flags;
  // Reserved.
  uint32_t reserved;
  // Name of the thread, padded with zero bytes.
  uint8_t thread_name[16];
  // Registers at the error, see [`REGISTERS`]; all zero if there are none.
  uint64_t registers[VMSRS_REGISTERS];
  // Return addresses, see [`BACKTRACE`].
  uint64_t backtrace[VMSRS_BACKTRACE];
};

// A draft that was dropped.
struct vmsrs_dropped_draft {
  // The domain.
  uint32_t domain;
  // The page.
  uint32_t page;
  // The draft's frame: granted, now evidence.
  uint32_t frame;
  // The frame with the page's committed content, or [`crate::NONE`] if it never was committed.
  uint32_t committed;
};

// What the program kept for whoever looks for the bug; follows the report of its incident in a
// message of its own. Behind it come `stack_bytes`, `modules_bytes` and `text_bytes` bytes. The
// driver takes them from the program as they are: nobody vouches for their content.
struct vmsrs_evidence {
  // The incident.
  uint64_t incident;
  // Address of the first byte of stack that is kept.
  uint64_t stack;
  // First byte of the whole stack; its guard lies below.
  uint64_t stack_low;
  // First byte behind the whole stack.
  uint64_t stack_high;
  // Bytes of stack, at most [`STACK_MAX`].
  uint32_t stack_bytes;
  // Bytes of module table, at most [`MODULES_MAX`].
  uint32_t modules_bytes;
  // Bytes of message (UTF-8, a panic's for example), at most [`TEXT_MAX`].
  uint32_t text_bytes;
  // Reserved.
  uint32_t reserved;
};

// The control block of one thread: one page, mapped read-write by the process, read by the driver
// in its fault handler. A request that writes nothing tagged begins and ends by changes here
// alone, without a system call.
//
// Written by the library unless said otherwise. The driver trusts nothing in it beyond this
// thread's own requests: a wrong tag makes writes fail, since the lock word of every domain
// written must carry the same tag.
struct vmsrs_thread_control {
  // Tag of the request that the thread works for, or 0.
  uint64_t tag;
  // Written by the driver, before it sends the thread's signal: tag of the request that has
  // failed. A thread that carries this tag must come to its landing; any other value is of a
  // request that it has left.
  uint64_t failed;
  // `CLOCK_MONOTONIC` nanoseconds at which the request is over its deadline, or 0 for no limit.
  // The driver's watch looks every 10 ms: it is never early, and late by one period at most.
  // The clock is that of the initial time namespace.
  uint64_t deadline_ns;
  // Drafts made by this thread in this request: raised by the driver, set to 0 by the library
  // when a request begins and when it has committed. Not 0 any more once it was raised.
  uint32_t drafts;
  // Entries in use in `held`.
  uint32_t held_count;
  // Protection key of the request's drafts, 1 to 15, or 0 for none; anything else counts as 0.
  // Where the CPU has protection keys, the driver puts it into the page-table entries of the
  // drafts, so that only threads whose PKRU opens the key reach them. It is taken from the
  // thread that makes the request's first draft and stays the request's: another key of another
  // member changes nothing.
  uint32_t key;
  // Complement of `drafts`, written with it. A request can overwrite the whole block: if the two do not
  // fit, it may have drafts.
  uint32_t drafts_complement;
  // Domains that the request holds or is about to lock. Of the threads that carry a request's
  // tag, one has the list: whichever of them locks or unlocks a domain, it is entered there
  // before its lock is taken and removed after it is released, so that a thread's death at any
  // point leaves no lock behind. [`crate::ioctl::IOCTL_SUSPEND`] takes it over.
  uint32_t held[VMSRS_HELD_MAX];
};

// Argument of [`IOCTL_OPEN_APP`].
struct vmsrs_ioctl_open_app {
  // In: name, padded with zero bytes; at least one byte.
  uint8_t name[VMSRS_NAME_MAX];
  // Out: address where the pages must be mapped (with `MAP_FIXED_NOREPLACE`).
  uint64_t base;
  // Out: bytes of address range.
  uint64_t length;
  // Out: `mmap` offset of the pages. Map shared, readable and writable.
  uint64_t pages_offset;
  // Out: `mmap` offset of the lock words.
  uint64_t locks_offset;
  // Out: bytes of lock words.
  uint64_t locks_length;
  // In: [`crate::device::ABI_VERSION`] of the library.
  uint32_t abi_version;
  // Out: the app's number.
  uint32_t app;
};

// Argument of [`IOCTL_OPEN_DOMAIN`].
struct vmsrs_ioctl_open_domain {
  // In: the key; bytes behind `key_length` are zero.
  uint8_t key[VMSRS_KEY_MAX];
  // In: bytes of `key` in use.
  uint32_t key_length;
  // Out: the domain's number, the index of its lock word.
  uint32_t domain;
  // Out: extents it has; 0 for a new one.
  uint32_t extents;
  // In: [`crate::control::DOMAIN_MIRROR`] or 0. Out: the domain's flags.
  uint32_t flags;
};

// Argument of [`IOCTL_EXTENT`].
struct vmsrs_ioctl_extent {
  // In: the domain.
  uint32_t domain;
  // In: index of the extent, at most the number of extents that the domain has.
  uint32_t index;
  // In: pages wanted if it does not exist yet. Out: pages it has.
  uint32_t pages;
  // Out: its first page.
  uint32_t page;
};

// Argument of [`IOCTL_THREAD`].
struct vmsrs_ioctl_thread {
  // Out: `mmap` offset of the thread's control page ([`crate::shared::ThreadControl`]).
  uint64_t control_offset;
  // Out: first tag that this thread may use.
  uint64_t tag_first;
  // Out: how many consecutive tags it may use.
  uint64_t tag_count;
  // In: signal that interrupts the thread when its request must end (deadline, failure of
  // another member); 0 for none.
  uint32_t signal;
  // Reserved.
  uint32_t reserved;
};

// Argument of [`IOCTL_TAGS`].
struct vmsrs_ioctl_tags {
  // Out: first tag.
  uint64_t tag_first;
  // Out: how many.
  uint64_t tag_count;
};

// Argument of [`IOCTL_COMMIT`].
struct vmsrs_ioctl_commit {
  // In: the request's tag.
  uint64_t tag;
  // In: [`COMMIT_SEAL`] or 0.
  uint32_t flags;
  // In: the one domain to commit, or [`crate::NONE`] for all that the request has drafts in.
  uint32_t domain;
};

// Argument of [`IOCTL_FAIL`].
struct vmsrs_ioctl_fail {
  // Out: number of the incident.
  uint64_t incident;
  // In: the request's tag.
  uint64_t tag;
  // In: `CLOCK_MONOTONIC` nanoseconds at the detection, or 0.
  uint64_t detected_ns;
  // Out: nanoseconds from the detection to the end of the discard.
  uint64_t recovery_ns;
  // In: address of the access that failed; meaningless without
  // [`crate::incident::REPORT_ADDRESS`].
  uint64_t address;
  // In: one of the `KIND_` constants; [`crate::incident::KIND_MEMORY`] is refined by the driver
  // ([`crate::incident::KIND_FOREIGN_WRITE`], [`crate::incident::KIND_FOREIGN_DRAFT`],
  // [`crate::incident::KIND_SEALED_WRITE`], [`crate::incident::KIND_NO_FRAMES`],
  // [`crate::incident::KIND_DEADLINE`]). Out: the kind in the report.
  uint32_t kind;
  // In: the signal, or 0.
  int32_t signal;
  // In: `si_code`, or 0.
  int32_t code;
  // Out: drafts of the request that were dropped, by this call and by those before it: another
  // member's, or the driver's own when the request was overdue.
  uint32_t drafts;
  // In: registers, see [`REGISTERS`].
  uint64_t registers[VMSRS_REGISTERS];
  // In: return addresses, see [`BACKTRACE`].
  uint64_t backtrace[VMSRS_BACKTRACE];
  // In: address of the bytes of stack to keep as evidence. Evidence is read when the drafts are
  // gone and the locks are free; what cannot be read is left out.
  uint64_t stack;
  // In: first byte of the whole stack.
  uint64_t stack_low;
  // In: first byte behind the whole stack.
  uint64_t stack_high;
  // In: address of the module table ([`crate::incident::ModuleEntry`]).
  uint64_t modules;
  // In: address of the message.
  uint64_t text;
  // In: bytes of stack, at most [`crate::incident::STACK_MAX`].
  uint32_t stack_bytes;
  // In: bytes of module table, at most [`crate::incident::MODULES_MAX`].
  uint32_t modules_bytes;
  // In: bytes of message, at most [`crate::incident::TEXT_MAX`].
  uint32_t text_bytes;
  // In: [`crate::incident::REPORT_ADDRESS`] or 0.
  uint32_t flags;
};

// Argument of [`IOCTL_SUSPEND`].
struct vmsrs_ioctl_suspend {
  // In: the request's tag.
  uint64_t tag;
  // In: `CLOCK_MONOTONIC` nanoseconds at which it is over its deadline, or 0 for no limit.
  uint64_t deadline_ns;
};

// Argument of [`IOCTL_DISCARD`], [`IOCTL_RESUME`] and [`IOCTL_ABANDON`].
struct vmsrs_ioctl_tag {
  // In: the request's tag.
  uint64_t tag;
};

// Argument of [`IOCTL_LOCK_WAIT`] and [`IOCTL_LOCK_WAKE`].
struct vmsrs_ioctl_lock {
  // In: the tag that takes the lock; ignored by [`IOCTL_LOCK_WAKE`].
  uint64_t tag;
  // In: the domain.
  uint32_t domain;
  // In: most milliseconds to wait, 1 to 3,600,000; ignored by [`IOCTL_LOCK_WAKE`].
  uint32_t timeout_ms;
};

// Argument of [`IOCTL_DRAFTS`].
struct vmsrs_ioctl_drafts {
  // In: tag of the request.
  uint64_t tag;
  // In: address of room for `capacity` page numbers of 32 bits.
  uint64_t pages;
  // In: the domain.
  uint32_t domain;
  // In: pages to leave out at the front.
  uint32_t skip;
  // In: most pages to list, 1 to [`DRAFTS_MAX`].
  uint32_t capacity;
  // Out: pages listed.
  uint32_t count;
};

// Argument of [`IOCTL_INFO`].
struct vmsrs_ioctl_info {
  // Frames in the window.
  uint32_t window_frames;
  // Most frames that the driver may hold as granted.
  uint32_t pool_frames;
  // Frames free in the driver's pool.
  uint32_t pool_free;
  // Drafts of all requests.
  uint32_t drafts;
  // Pages committed and not yet sealed.
  uint32_t unsealed;
  // 1 if the host broke the protocol or a timeout; nothing can be written then.
  uint32_t broken;
  // Commits with at least one page since the driver was loaded.
  uint64_t commits;
  // Pages sealed.
  uint64_t sealed_pages;
  // Drafts discarded.
  uint64_t discarded;
  // Incidents reported by the driver.
  uint64_t incidents;
  // Seal messages sent; with `commits` this tells how rare exits are.
  uint64_t seal_messages;
};

// Reply to [`MESSAGE_ADD_EXTENT`].
typedef struct vmsrs_extent vmsrs_extent_reply;

#endif  /* VMSRS_PROTOCOL_H */
