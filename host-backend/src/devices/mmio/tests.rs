//! The transport as a driver sees it, well-behaved and not.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use super::*;
use crate::devices::{ShmRegion, copy_config};

const RAM: usize = 0x10_0000;
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << 5;
const REGIONS: [ShmRegion; 2] = [
    ShmRegion {
        id: 0,
        address: GuestAddress(0x1_2345_6000),
        length: 0x2_0000_1000,
    },
    ShmRegion {
        id: 1,
        address: GuestAddress(0x5_4321_0000),
        length: 0x1000,
    },
];

#[derive(Default)]
struct Log {
    activation: Mutex<Option<Activation>>,
    resets: AtomicUsize,
    config: Mutex<[u8; 8]>,
}

struct Device {
    log: Arc<Log>,
    refuses: bool,
}

impl VirtioDevice for Device {
    fn device_id(&self) -> u32 {
        42
    }

    fn vendor_id(&self) -> u32 {
        0x1234
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 8]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&*self.log.config.lock().unwrap(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let start = offset as usize;
        self.log.config.lock().unwrap()[start..start + data.len()].copy_from_slice(data);
    }

    fn shm_regions(&self) -> &[ShmRegion] {
        &REGIONS
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.refuses {
            return Err(io::Error::from_raw_os_error(libc::EMFILE).into());
        }
        *self.log.activation.lock().unwrap() = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        self.log.resets.fetch_add(1, Ordering::Relaxed);
        *self.log.activation.lock().unwrap() = None;
    }
}

#[derive(Default)]
struct Line(AtomicUsize);

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A driver's view of the registers.
struct Driver {
    transport: MmioTransport,
    log: Arc<Log>,
    line: Arc<Line>,
}

impl Driver {
    fn new() -> Self {
        Self::with_device(false)
    }

    fn with_device(refuses: bool) -> Self {
        let log = Arc::new(Log::default());
        let line = Arc::new(Line::default());
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let device = Device {
            log: log.clone(),
            refuses,
        };
        let mut transport = MmioTransport::new("test", Box::new(device)).unwrap();
        transport.power_on(memory, line.clone());
        Self {
            transport,
            log,
            line,
        }
    }

    fn read(&mut self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    fn status(&mut self, status: u32) -> u32 {
        self.write(VIRTIO_MMIO_STATUS, status);
        self.read(VIRTIO_MMIO_STATUS)
    }

    fn accept(&mut self, features: u64) {
        self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES, (features >> 32) as u32);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        self.write(VIRTIO_MMIO_DRIVER_FEATURES, features as u32);
    }

    /// Up to FEATURES_OK.
    fn negotiate(&mut self) {
        self.status(status::RESET);
        self.status(status::ACKNOWLEDGED);
        self.status(status::DRIVER);
        self.accept(FEATURES);
        assert_eq!(self.status(status::FEATURES_OK), status::FEATURES_OK);
    }

    fn set_up_queue(&mut self, index: u32, size: u32, parts: [u64; 3]) -> bool {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size);
        let registers = [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH),
        ];
        for ((low, high), address) in registers.into_iter().zip(parts) {
            self.write(low, address as u32);
            self.write(high, (address >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        self.read(VIRTIO_MMIO_QUEUE_READY) == 1
    }

    fn start(&mut self) {
        self.negotiate();
        assert!(self.set_up_queue(0, 16, [0x1000, 0x2000, 0x3000]));
        assert!(self.set_up_queue(1, 4, [0x4000, 0x5000, 0x6000]));
        assert_eq!(self.status(status::RUNNING), status::RUNNING);
    }

    fn is_active(&self) -> bool {
        self.log.activation.lock().unwrap().is_some()
    }

    fn refusals(&self) -> u64 {
        let counts = self.transport.tally().counts();
        counts.into_iter().map(|(_, count)| count).sum()
    }
}

#[test]
fn power_off_releases_queues_and_memory() {
    let mut driver = Driver::new();
    driver.start();
    driver.transport.power_off();
    assert!(!driver.is_active());
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), status::RESET);
    driver.negotiate();
    assert!(!driver.set_up_queue(0, 16, [0x1000, 0x2000, 0x3000]));
    driver.transport.power_off();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    driver.transport.power_on(memory, driver.line.clone());
    driver.start();
    assert!(driver.is_active());
}

#[test]
fn the_identity_registers_say_what_the_device_is() {
    let mut driver = Driver::new();
    for (register, value) in [
        (VIRTIO_MMIO_MAGIC_VALUE, u32::from_le_bytes(*b"virt")),
        (VIRTIO_MMIO_VERSION, 2),
        (VIRTIO_MMIO_DEVICE_ID, 42),
        (VIRTIO_MMIO_VENDOR_ID, 0x1234),
        (VIRTIO_MMIO_STATUS, 0),
    ] {
        assert_eq!(driver.read(register), value, "register {register:#x}");
    }
    assert_eq!(driver.refusals(), 0);
}

#[test]
fn correct_driver_activates_the_device() {
    let mut driver = Driver::new();
    driver.start();
    assert_eq!(driver.refusals(), 0);
    let activation = driver.log.activation.lock().unwrap().take().unwrap();
    assert_eq!(activation.features, FEATURES);
    let [first, second] = &activation.queues[..] else {
        panic!("two queues")
    };
    assert_eq!((first.index, first.queue.size()), (0, 16));
    assert_eq!((second.index, second.queue.size()), (1, 4));
    assert_eq!(second.queue.desc_table(), 0x4000);
    assert_eq!(second.queue.avail_ring(), 0x5000);
    assert_eq!(second.queue.used_ring(), 0x6000);
    assert!(second.queue.event_idx_enabled());
}

#[test]
fn offered_features_are_read_by_halves() {
    let mut driver = Driver::new();
    for (select, value) in [
        (0, FEATURES as u32),
        (1, (FEATURES >> 32) as u32),
        (2, 0),
        (u32::MAX, 0),
    ] {
        driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
        assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), value);
    }
}

#[test]
fn wrong_features_leave_features_ok_unset() {
    for features in [FEATURES | 1 << 6, FEATURES & !(1 << VIRTIO_F_VERSION_1), 0] {
        let mut driver = Driver::new();
        driver.status(status::ACKNOWLEDGED);
        driver.status(status::DRIVER);
        driver.accept(features);
        assert_eq!(driver.status(status::FEATURES_OK), status::DRIVER);
        assert_eq!(driver.status(status::RUNNING), status::DRIVER);
        assert!(!driver.is_active());
    }
}

#[test]
fn features_are_final_once_agreed_on() {
    let mut driver = Driver::new();
    driver.negotiate();
    driver.accept(FEATURES | 1 << 6);
    assert_eq!(driver.refusals(), 2);
    driver.status(status::RUNNING);
    let activation = driver.log.activation.lock().unwrap().take().unwrap();
    assert_eq!(activation.features, FEATURES);
}

#[test]
fn a_status_that_may_not_follow_is_ignored() {
    let mut driver = Driver::new();
    for status in [
        status::DRIVER,
        status::FEATURES_OK,
        status::RUNNING,
        0x100,
        0x10,
    ] {
        assert_eq!(driver.status(status), status::RESET);
    }
    assert_eq!(driver.refusals(), 5);
    driver.start();
    assert_eq!(driver.status(status::DRIVER), status::RUNNING);
    assert!(driver.is_active());
}

#[test]
fn a_reset_at_any_time_gives_a_device_that_starts_again() {
    let mut driver = Driver::new();
    for _ in 0..3 {
        driver.start();
        assert!(driver.is_active());
        assert_eq!(driver.status(status::RESET), status::RESET);
        assert!(!driver.is_active());
        driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
    assert_eq!(driver.refusals(), 0);
}

#[test]
fn a_driver_that_failed_can_only_reset() {
    let mut driver = Driver::new();
    driver.status(status::ACKNOWLEDGED);
    let failed = status::ACKNOWLEDGED | status::FAILED;
    assert_eq!(driver.status(failed), failed);
    assert_eq!(driver.status(status::DRIVER), failed);
    driver.start();
}

#[test]
fn a_device_that_does_not_start_says_that_it_needs_a_reset() {
    let mut driver = Driver::with_device(true);
    driver.negotiate();
    let status = driver.status(status::RUNNING);
    assert_eq!(status, status::RUNNING | status::NEEDS_RESET);
    assert_eq!(
        driver.read(VIRTIO_MMIO_INTERRUPT_STATUS),
        VIRTIO_MMIO_INT_CONFIG
    );
    assert_eq!(driver.line.0.load(Ordering::Relaxed), 1);
    // A driver may write back what it read.
    assert_eq!(driver.status(status), status);
    assert_eq!(driver.status(status::RESET), status::RESET);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn queues_of_impossible_sizes_are_not_made_ready() {
    let mut driver = Driver::new();
    driver.negotiate();
    for size in [0, 3, 15, 32, 0x1_0000, 0x1_0010, u32::MAX] {
        assert!(
            !driver.set_up_queue(0, size, [0x1000, 0x2000, 0x3000]),
            "size {size}"
        );
    }
    assert_eq!(driver.refusals(), 7);
}

#[test]
fn queues_outside_ram_or_misaligned_are_not_made_ready() {
    let end = RAM as u64;
    let mut driver = Driver::new();
    driver.negotiate();
    let good = [0x1000, 0x2000, 0x3000];
    for (part, length, unaligned) in [(0, 16 * 16, 8), (1, 6 + 2 * 16, 1), (2, 6 + 8 * 16, 2)] {
        for address in [
            0,
            end,
            end - length + 0x10,
            u64::MAX - 0xf,
            1 << 63,
            0x1000 + unaligned,
        ] {
            let mut parts = good;
            parts[part] = address;
            assert!(
                !driver.set_up_queue(0, 16, parts),
                "part {part} at {address:#x}"
            );
        }
    }
    assert!(driver.set_up_queue(0, 16, good));
}

#[test]
fn queue_registers_are_writable_only_in_setup() {
    let mut driver = Driver::new();
    assert!(!driver.set_up_queue(0, 16, [0x1000, 0x2000, 0x3000]));
    driver.start();
    driver.set_up_queue(0, 8, [0x7000, 0x7000, 0x7000]);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
    let activation = driver.log.activation.lock().unwrap().take().unwrap();
    assert_eq!(activation.queues[0].queue.desc_table(), 0x1000);
}

#[test]
fn missing_queue_has_size_0_and_takes_no_writes() {
    let mut driver = Driver::new();
    driver.negotiate();
    for index in [2, 0xffff, 0x1_0000, u32::MAX] {
        assert!(!driver.set_up_queue(index, 8, [0x1000, 0x2000, 0x3000]));
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    }
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 8);
}

#[test]
fn a_notification_kicks_its_queue_of_a_running_device_alone() {
    let mut driver = Driver::new();
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    driver.start();
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 2);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
    let activation = driver.log.activation.lock().unwrap().take().unwrap();
    assert!(activation.queues[0].kick.read().is_err());
    assert_eq!(activation.queues[1].kick.read().unwrap(), 1);
    assert_eq!(driver.refusals(), 3);
}

#[test]
fn an_interrupt_has_its_reason_until_it_is_acknowledged() {
    let mut driver = Driver::new();
    driver.start();
    let activation = driver.log.activation.lock().unwrap().take().unwrap();
    activation.interrupt.queue_used();
    activation.interrupt.config_changed();
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(
        driver.read(VIRTIO_MMIO_INTERRUPT_STATUS),
        VIRTIO_MMIO_INT_CONFIG
    );
    assert_eq!(driver.line.0.load(Ordering::Relaxed), 2);
}

#[test]
fn each_shared_memory_region_is_selected_by_its_number() {
    let mut driver = Driver::new();
    let read = |driver: &mut Driver, select| {
        driver.write(VIRTIO_MMIO_SHM_SEL, select);
        let mut pair = |low, high| u64::from(driver.read(low)) | u64::from(driver.read(high)) << 32;
        (
            pair(VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_BASE_HIGH),
            pair(VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_LEN_HIGH),
        )
    };
    for region in [REGIONS[1], REGIONS[0], REGIONS[1]] {
        let expected = (region.address.0, region.length);
        assert_eq!(read(&mut driver, region.id), expected, "{region:?}");
    }
    // Absent ones read as all ones.
    for absent in [2, 3, 255, 256, u32::MAX] {
        assert_eq!(read(&mut driver, absent), (u64::MAX, u64::MAX));
    }
}

#[test]
fn the_configuration_space_is_read_and_written_in_any_width() {
    let mut driver = Driver::new();
    let config = u64::from(VIRTIO_MMIO_CONFIG);
    driver.transport.write(config + 2, &[0x55]);
    driver.transport.write(config + 4, &[1, 2]);
    let mut data = [0xff; 8];
    driver.transport.read(config, &mut data);
    assert_eq!(data, [0, 0, 0x55, 0, 1, 2, 0, 0]);
    let mut data = [0xff; 4];
    driver.transport.read(MMIO_LENGTH - 4, &mut data);
    assert_eq!(data, [0; 4]);
}

#[test]
fn invalid_accesses_are_ignored_and_counted() {
    let mut driver = Driver::new();
    for width in [1, 2, 3, 8] {
        driver.transport.write(
            VIRTIO_MMIO_STATUS.into(),
            &[1, 0, 0, 0, 0, 0, 0, 0][..width],
        );
        driver
            .transport
            .read(VIRTIO_MMIO_STATUS.into(), &mut [0; 8][..width]);
    }
    assert_eq!(driver.refusals(), 8);
    for register in [2, 0x18, 0x28, 0x54, 0xfd] {
        driver.read(register);
        driver.write(register, 1);
    }
    driver.write(VIRTIO_MMIO_MAGIC_VALUE, 1);
    driver.read(VIRTIO_MMIO_QUEUE_NOTIFY);
    assert_eq!(driver.refusals(), 20);
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0);
}

#[test]
fn random_accesses_never_activate_a_bad_queue() {
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    let value = prop_oneof![0u32..0x20, Just(u32::MAX), any::<u32>()];
    let access = (0u32..0x40, value, any::<bool>(), 0usize..10);
    let accesses = proptest::collection::vec(access, 0..200);
    TestRunner::new(ProptestConfig::with_cases(64))
        .run(&accesses, |accesses| {
            let mut driver = Driver::new();
            driver.negotiate();
            for (register, value, write, width) in accesses {
                let offset = u64::from(register) * 4;
                if !write {
                    driver.transport.read(offset, &mut vec![0; width]);
                } else if width == 8 {
                    driver
                        .transport
                        .write(offset, &u64::from(value).to_le_bytes());
                } else {
                    driver.write(register * 4, value);
                }
                let activation = driver.log.activation.lock().unwrap();
                for active in activation.iter().flat_map(|it| &it.queues) {
                    prop_assert!(active.queue.is_valid(&driver.transport.memory));
                }
            }
            Ok(())
        })
        .unwrap();
}
