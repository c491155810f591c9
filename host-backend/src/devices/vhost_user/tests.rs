//! The device between a driver's queue in memory and a daemon that is this test.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::rings::RelayedQueue;
use super::*;
use crate::devices::worker::Serve;
use crate::devices::{ActiveQueue, DeviceInterrupt};
use crate::host_memory::HostPages;
use crate::vmm::irq::Interrupt;
use crate::vmm::memory::{Layout, MIN_RAM};

const SIZE: u16 = 16;
const RAM: usize = 1 << 20;
/// Places of the driver's queue.
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Readable and writable buffers of the requests.
const ASKED: u64 = 0x8_0000;
const ANSWERED: u64 = 0x9_0000;
/// Tokens of the driver's and the daemon's side, and of the connection.
const DRIVER: u64 = 0;
const DAEMON: u64 = 1;
const CONNECTION: u64 = 1 << 32;

#[derive(Clone, Default)]
struct Line(Arc<AtomicUsize>);

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A device with one queue at work, without its thread.
struct Bench {
    ram: GuestMemoryMmap,
    rings: Rings,
    queues: Queues,
    line: Line,
    status: Arc<DaemonStatus>,
    tally: Arc<Tally>,
    _daemon: UnixStream,
}

fn bench(kind: Kind) -> Bench {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    let rings = Rings::new(&[QUEUE_SIZE]).unwrap();
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_desc_table_address(Some(TABLE as u32), None);
    queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
    queue.set_used_ring_address(Some(USED as u32), None);
    queue.set_ready(true);
    let active = ActiveQueue {
        index: 0,
        queue,
        kick: EventFd::new(EFD_NONBLOCK).unwrap(),
    };
    let queue: RelayedQueue = rings.queue(active).unwrap();
    let line = Line::default();
    let status = Arc::new(DaemonStatus::new(
        "--disk a.img".into(),
        Some(1),
        kind.loss(),
    ));
    let tally = Arc::<Tally>::default();
    let traffic = Traffic::new(
        kind,
        vec![queue],
        ram.clone(),
        DeviceInterrupt::new(line.clone()),
        status.clone(),
        tally.clone(),
    );
    let (socket, daemon) = UnixStream::pair().unwrap();
    let queues = Queues::new(Arc::new(Mutex::new(traffic)), Arc::new(socket)).unwrap();
    Bench {
        ram,
        rings,
        queues,
        line,
        status,
        tally,
        _daemon: daemon,
    }
}

impl Bench {
    /// The driver puts a chain into its queue: a buffer that is read and one that is written, at `head` and after it.
    fn request(&self, head: u16, next: u16) {
        let flags = VRING_DESC_F_NEXT as u16;
        let read = Descriptor::new(ASKED, 16, flags, next);
        let write = Descriptor::new(ANSWERED, 32, VRING_DESC_F_WRITE as u16, 0);
        let store = |index: u16, descriptor| {
            let at = GuestAddress(TABLE + 16 * u64::from(index));
            let raw = RawDescriptor::from(descriptor);
            self.ram.write_obj(raw, at).unwrap();
        };
        if next != head {
            store(next, write);
        }
        store(head, read);
        let index: u16 = self.ram.read_obj(GuestAddress(AVAILABLE + 2)).unwrap();
        let slot = GuestAddress(AVAILABLE + 4 + 2 * u64::from(index));
        self.ram.write_obj(head, slot).unwrap();
        let after = GuestAddress(AVAILABLE + 2);
        self.ram.write_obj(index + 1, after).unwrap();
    }

    /// What the driver finds in its used ring: the chains, and how much was written.
    fn used(&self) -> Vec<(u32, u32)> {
        let read = |at| self.ram.read_obj::<u32>(GuestAddress(USED + at)).unwrap();
        let count: u16 = self.ram.read_obj(GuestAddress(USED + 2)).unwrap();
        (0..u64::from(count))
            .map(|number| (read(4 + 8 * number), read(8 + 8 * number)))
            .collect()
    }

    /// What the daemon finds in its available ring.
    fn asked(&self) -> Vec<u16> {
        let [_, available, _] = self.parts();
        let read = |at| {
            self.rings
                .memory
                .read_obj::<u16>(GuestAddress(available + at))
        };
        let count = u64::from(read(2).unwrap());
        (0..count).map(|slot| read(4 + 2 * slot).unwrap()).collect()
    }

    /// The daemon answers.
    fn answer(&self, number: u16, head: u32, length: u32) {
        let [_, _, used] = self.parts();
        let at = used + 4 + 8 * u64::from(number);
        let memory = &self.rings.memory;
        memory.write_obj(head, GuestAddress(at)).unwrap();
        memory.write_obj(length, GuestAddress(at + 4)).unwrap();
        memory
            .write_obj(number + 1, GuestAddress(used + 2))
            .unwrap();
    }

    fn parts(&self) -> [u64; 3] {
        let start = self.rings.memory.iter().next().unwrap().start_addr().0;
        [start, start + 4096, start + 8192]
    }

    fn written(&self, offset: u64) -> u8 {
        self.ram.read_obj(GuestAddress(ANSWERED + offset)).unwrap()
    }
}

#[test]
fn requests_reach_the_daemon_and_answers_the_driver() {
    let mut bench = bench(Kind::Block);
    bench.request(3, 7);
    bench.queues.start().unwrap();
    bench.request(0, 1);
    bench.queues.ready(DRIVER).unwrap();
    assert_eq!(bench.asked(), [3, 0]);
    let [table, _, _] = bench.parts();
    let copy: RawDescriptor = bench
        .rings
        .memory
        .read_obj(GuestAddress(table + 16 * 7))
        .unwrap();
    let copy = Descriptor::from(copy);
    assert_eq!(
        (copy.addr().0, copy.len(), copy.is_write_only()),
        (ANSWERED, 32, true)
    );
    assert_eq!(bench.used(), []);
    bench.answer(0, 0, 1);
    bench.answer(1, 3, 513);
    bench.queues.ready(DAEMON).unwrap();
    assert_eq!(bench.used(), [(0, 1), (3, 513)]);
    assert_eq!(bench.line.0.load(Ordering::Relaxed), 1);
}

#[test]
fn without_its_daemon_a_disk_answers_with_errors() {
    let mut bench = bench(Kind::Block);
    bench.request(0, 1);
    bench.request(2, 3);
    bench.queues.start().unwrap();
    bench.answer(0, 2, 1);
    bench.queues.ready(CONNECTION).unwrap();
    // The answer that was there counts.
    assert_eq!(bench.used(), [(2, 1), (0, 0)]);
    assert_eq!(u32::from(bench.written(31)), VIRTIO_BLK_S_IOERR);
    assert!(bench.status.is_lost());
    bench
        .ram
        .write_obj(0xffu8, GuestAddress(ANSWERED + 31))
        .unwrap();
    bench.request(4, 5);
    bench.queues.ready(DRIVER).unwrap();
    assert_eq!(bench.used().len(), 3);
    assert_eq!(u32::from(bench.written(31)), VIRTIO_BLK_S_IOERR);
    assert_eq!(bench.asked().len(), 2, "nobody is asked");
}

#[test]
fn without_its_daemon_a_share_answers_with_the_request_s_number() {
    let tag = "t".into();
    let mut bench = bench(Kind::FileSystem { tag });
    let unique = 0x1122_3344_5566_7788u64;
    bench
        .ram
        .write_obj(unique, GuestAddress(ASKED + 8))
        .unwrap();
    bench.request(0, 1);
    bench.queues.start().unwrap();
    bench.queues.ready(CONNECTION).unwrap();
    assert_eq!(bench.used(), [(0, 16)]);
    let answer: [u8; 16] = bench.ram.read_obj(GuestAddress(ANSWERED)).unwrap();
    assert_eq!(answer[..4], 16u32.to_le_bytes());
    assert_eq!(answer[4..8], (-libc::EIO).to_le_bytes());
    assert_eq!(answer[8..], unique.to_le_bytes());
}

#[test]
fn a_daemon_that_answers_what_it_was_not_asked_is_lost() {
    for head in [1, 2, u32::from(SIZE), u32::MAX] {
        let mut bench = bench(Kind::Block);
        bench.request(0, 1);
        bench.queues.start().unwrap();
        bench.answer(0, head, 1);
        bench.queues.ready(DAEMON).unwrap();
        assert!(bench.status.is_lost(), "{head}");
        assert_eq!(bench.used(), [(0, 0)], "{head}");
    }
}

#[test]
fn a_chain_without_an_end_or_asked_twice_is_refused() {
    let mut bench = bench(Kind::Block);
    bench.request(5, 5);
    bench.request(0, 1);
    bench.request(0, 1);
    bench.queues.start().unwrap();
    assert_eq!(bench.asked(), [0]);
    assert_eq!(bench.used(), [(5, 0), (0, 0)]);
    assert_eq!(bench.tally.counts()[0].1, 2);
    assert!(!bench.status.is_lost());
}

const NETWORK: Kind = Kind::Network {
    mac: [2, 0, 0, 0, 0, 1],
    mtu: Some(9000),
};

#[test]
fn a_frame_in_several_buffers_appears_at_once() {
    let mut bench = bench(NETWORK);
    for head in [0, 2, 4] {
        bench.request(head, head + 1);
    }
    bench.queues.start().unwrap();
    bench.answer(0, 0, 1514);
    bench.answer(1, 2, 100);
    let mut traffic = bench.queues.traffic();
    let queue = &mut traffic.queues()[0];
    while let Some((head, length)) = queue.next_answer().unwrap() {
        queue.put(&bench.ram, head, length).unwrap();
        assert_eq!(
            bench.used(),
            [],
            "a driver that looks now sees all or nothing"
        );
    }
    drop(traffic);
    bench.queues.ready(DAEMON).unwrap();
    assert_eq!(bench.used(), [(0, 1514), (2, 100)]);
}

#[test]
fn without_its_daemon_a_network_card_is_silent() {
    let mut bench = bench(NETWORK);
    bench.request(0, 1);
    bench.queues.start().unwrap();
    bench.queues.ready(CONNECTION).unwrap();
    assert!(bench.status.is_lost());
    // A buffer that came back would be replaced at once, and that one too.
    assert_eq!(bench.used(), []);
    bench.request(2, 3);
    bench.queues.ready(DRIVER).unwrap();
    assert_eq!((bench.used(), bench.asked().len()), (vec![], 1));
    // What the guest sends is lost.
    assert!(NETWORK.is_answered(1));
}

/// Serves a connection as a daemon does that offers these features, and can acknowledge; returns the numbers of the requests.
fn serve(mut socket: UnixStream, offered: u64) -> Vec<u32> {
    const GET_FEATURES: u32 = 1;
    const SET_FEATURES: u32 = 2;
    const GET_VRING_BASE: u32 = 11;
    const GET_PROTOCOL_FEATURES: u32 = 15;
    const ACKNOWLEDGES: u64 = 1 << 3;
    const IS_REPLY: u32 = 1 << 2;
    const NEEDS_REPLY: u32 = 1 << 3;
    let mut requests = Vec::new();
    loop {
        let mut head = [0; 12];
        // What comes with descriptors is read without them.
        if socket.read_exact(&mut head).is_err() {
            return requests;
        }
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let [request, flags, length] = [0, 4, 8].map(word);
        let mut body = vec![0; length as usize];
        socket.read_exact(&mut body).unwrap();
        requests.push(request);
        let answer = match request {
            GET_FEATURES => Some(offered.to_le_bytes().to_vec()),
            GET_PROTOCOL_FEATURES => Some(ACKNOWLEDGES.to_le_bytes().to_vec()),
            GET_VRING_BASE => Some(body),
            SET_FEATURES => {
                let features = u64::from_le_bytes(body.try_into().unwrap());
                // Those of the configuration space are not the daemon's.
                assert_eq!(features & !offered, 0, "{features:#x}");
                Some(vec![0; 8]).filter(|_| flags & NEEDS_REPLY != 0)
            }
            _ => Some(vec![0; 8]).filter(|_| flags & NEEDS_REPLY != 0),
        };
        if let Some(answer) = answer {
            let head = [request, 1 | IS_REPLY, answer.len() as u32];
            let head = head.map(u32::to_le_bytes).concat();
            socket.write_all(&[head, answer].concat()).unwrap();
        }
    }
}

#[test]
fn a_network_card_passes_on_what_its_daemon_can_and_stops_with_empty_buffers() {
    const PROTOCOL_FEATURES: u64 = 1 << 30;
    const GET_VRING_BASE: u32 = 11;
    const GET_CONFIG: u32 = 24;
    let offered = PROTOCOL_FEATURES | bits(&[VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF])
        // What nobody here knows.
        | 1 << 26 | bits(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ]);
    let (socket, other) = UnixStream::pair().unwrap();
    let daemon = std::thread::spawn(move || serve(other, offered));
    let status = DaemonStatus::new("--vhost-user net".into(), None, NETWORK.loss());
    let status = Arc::new(status);
    let mut device = VhostUser::new(NETWORK, socket, status.clone()).unwrap();
    let expected = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_MTU,
        VIRTIO_NET_F_MRG_RXBUF,
    ];
    assert_eq!(device.features(), bits(&expected));
    let mut config = [0; 12];
    device.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0x28, 0x23]);

    let ram = Layout::new(MIN_RAM).unwrap();
    let ram = ram.allocate(HostPages::Standard).unwrap();
    // A buffer for a frame that never comes.
    let descriptor = Descriptor::new(ANSWERED, 2048, VRING_DESC_F_WRITE as u16, 0);
    let descriptor = RawDescriptor::from(descriptor);
    ram.write_obj(descriptor, GuestAddress(TABLE)).unwrap();
    for boot in 1..3 {
        ram.write_obj(1u16, GuestAddress(AVAILABLE + 2)).unwrap();
        let queues = (0..2).map(|index| {
            // The other queue is empty.
            let place = |part| Some((part + 0x1_0000 * u64::from(index)) as u32);
            let mut queue = Queue::new(SIZE).unwrap();
            queue.set_desc_table_address(place(TABLE), None);
            queue.set_avail_ring_address(place(AVAILABLE), None);
            queue.set_used_ring_address(place(USED), None);
            queue.set_ready(true);
            let kick = EventFd::new(EFD_NONBLOCK).unwrap();
            ActiveQueue { index, queue, kick }
        });
        let activation = Activation {
            memory: ram.clone(),
            queues: queues.collect(),
            interrupt: DeviceInterrupt::new(Line::default()),
            features: device.features(),
        };
        device.activate(activation).unwrap();
        device.reset();
        assert!(!status.is_lost(), "{boot}");
    }
    drop(device);
    let requests = daemon.join().unwrap();
    let count = |request| requests.iter().filter(|&&other| other == request).count();
    assert_eq!((count(GET_CONFIG), count(GET_VRING_BASE)), (0, 4));
    // A stopped queue is emptied before the daemon loses the memory of its buffers.
    const SET_MEM_TABLE: u32 = 5;
    const SET_VRING_BASE: u32 = 10;
    let stop = [
        GET_VRING_BASE,
        GET_VRING_BASE,
        SET_VRING_BASE,
        SET_VRING_BASE,
        SET_MEM_TABLE,
    ];
    assert_eq!(requests.windows(5).filter(|part| *part == stop).count(), 2);
}

#[test]
fn the_configuration_of_a_share_is_its_tag_and_a_queue() {
    let tag = "data".into();
    let config = Kind::FileSystem { tag }.own_config().unwrap();
    assert_eq!((config.len(), &config[..5]), (40, &b"data\0"[..]));
    assert_eq!(config[36..], 1u32.to_le_bytes());
    assert_eq!(Kind::Block.own_config(), None);
}
