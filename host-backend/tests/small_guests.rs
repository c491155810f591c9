//! Guests of a few instructions, run on the machine's own KVM: how a VM ends, and what a store
//! into a protected frame leads to.
//!
//! Each test says so and passes when this machine has no usable /dev/kvm; the end-to-end tests
//! show the same with whole kernels in the nested test-bed.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_ioctls::Kvm;
use linux_loader::bootparam::setup_header;
use tempfile::NamedTempFile;
use vm_memory::{ByteValued, GuestAddress};
use vmsrs_host::host_memory::HostPages;
use vmsrs_host::regions::Regions;
use vmsrs_host::vmm::console::Console;
use vmsrs_host::vmm::fault::{VaultGuard, Violation};
use vmsrs_host::vmm::loader::Kernel;
use vmsrs_host::vmm::{ExitReason, StopHandle, Vm, VmConfig, VmError};

const MEMORY: u64 = 64 << 20;
const PAGE: usize = 4096;

/// A bzImage whose 64-bit entry point is `code`.
fn kernel(code: &[u8]) -> NamedTempFile {
    // One boot sector, one setup sector, and the code 0x200 bytes into the rest.
    let mut image = vec![0u8; 1024 + 0x200];
    let header = setup_header {
        setup_sects: 1,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x020f,
        loadflags: 1,
        xloadflags: 1,
        initrd_addr_max: u32::MAX >> 1,
        pref_address: 0x10_0000,
        init_size: 0x1000,
        ..Default::default()
    };
    image[0x1f1..][..size_of::<setup_header>()].copy_from_slice(header.as_slice());
    image.extend_from_slice(code);
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&image).unwrap();
    file
}

/// Console output that a test can read.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn silent() -> Console {
    Console::output_to(std::io::sink()).unwrap()
}

fn machine(code: &[u8], console: Console) -> Option<Vm> {
    if let Err(error) = Kvm::new() {
        eprintln!("skipped: /dev/kvm cannot be opened: {error}");
        return None;
    }
    let kernel = kernel(code);
    let config = VmConfig {
        memory_bytes: MEMORY,
        pages: HostPages::Standard,
        vcpus: 2,
        kernel: Kernel::open(kernel.path()).unwrap(),
        initramfs: None,
        cmdline: String::new(),
        console,
    };
    let vm = Vm::new(&config, StopHandle::default());
    Some(vm.expect("the VM is made"))
}

fn run(code: &[u8]) -> Option<ExitReason> {
    Some(machine(code, silent())?.run().unwrap())
}

/// `mov dx, port; mov al, value; out dx, al`
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// `jmp` to itself.
const SPIN: &[u8] = &[0xeb, 0xfe];

#[test]
fn console_output_and_keyboard_reset_work() {
    let output = Output::default();
    let mut code = out(0x3f8, b'h');
    code.extend(out(0x3f8, b'i'));
    code.extend(out(0x64, 0xfe));
    code.extend(SPIN);
    let console = Console::output_to(output.clone()).unwrap();
    let Some(vm) = machine(&code, console.clone()) else {
        return;
    };
    assert_eq!(vm.run().unwrap(), ExitReason::Reset);
    assert!(console.finish());
    assert_eq!(*output.0.lock().unwrap(), b"hi");
}

#[test]
fn soft_off_ends_the_vm() {
    let mut code = out(0x600, 0x34);
    code.extend(SPIN);
    if let Some(reason) = run(&code) {
        assert_eq!(reason, ExitReason::PowerOff);
    }
}

#[test]
fn a_triple_fault_is_reported_with_place_and_code() {
    // ud2, without any interrupt descriptor table.
    let Some(reason) = run(&[0x0f, 0x0b, 0x90, 0x90]) else {
        return;
    };
    let ExitReason::Crash(report) = reason else {
        panic!("{reason}");
    };
    assert_eq!(report.vcpu, Some(0));
    assert!(!report.what.is_empty());
}

#[test]
fn a_guest_that_never_exits_is_stopped_from_outside() {
    let Some(vm) = machine(SPIN, silent()) else {
        return;
    };
    let stop = vm.stop_handle();
    let stopper = thread::spawn(move || stop.stop(ExitReason::Stopped("a test")));
    assert_eq!(vm.run().unwrap(), ExitReason::Stopped("a test"));
    stopper.join().unwrap();
}

#[test]
fn guest_writes_the_pool_and_not_the_vault() {
    let code = [
        // Map the virtual addresses 1 GiB and 1 GiB + 2 MiB to pool and vault, by the first two entries
        // of the second page directory: mov rax, 4 GiB | 0x83; mov [0xc000], rax; mov rax, 5 GiB | 0x83;
        // mov [0xc008], rax
        &[0x48, 0xb8, 0x83, 0, 0, 0, 1, 0, 0, 0][..],
        &[0x48, 0x89, 0x04, 0x25, 0x00, 0xc0, 0, 0],
        &[0x48, 0xb8, 0x83, 0, 0, 0x40, 1, 0, 0, 0],
        &[0x48, 0x89, 0x04, 0x25, 0x08, 0xc0, 0, 0],
        // mov edi, 1 GiB; mov byte [rdi], 0x11; mov byte [rdi+0x201008], 0x22; ud2
        &[0xbf, 0, 0, 0, 0x40],
        &[0xc6, 0x07, 0x11],
        &[0xc6, 0x87, 0x08, 0x10, 0x20, 0, 0x22],
        &[0x0f, 0x0b],
    ]
    .concat();
    let Some(mut vm) = machine(&code, silent()) else {
        return;
    };
    let regions = Regions::new(512, 512, HostPages::Standard).unwrap();
    let (pool, vault) = (&regions.pool, &regions.vault);
    let [pool_start, vault_start] = vm.layout().place([pool.size(), vault.size()]);
    assert_eq!((pool_start.0, vault_start.0), (4 << 30, 5 << 30));
    // SAFETY: each region owns its mapping, and nothing makes references to it.
    unsafe {
        vm.add_region(pool_start, pool.guest_mapping(), pool.size(), pool.clone())
            .unwrap();
        vm.add_region(
            vault_start,
            vault.guest_mapping(),
            vault.size(),
            vault.clone(),
        )
        .unwrap();
    }
    let seen: Arc<Mutex<Vec<Violation>>> = Arc::default();
    let sink = seen.clone();
    vm.set_fault_handler(Arc::new(VaultGuard::new(
        vm.memory().clone(),
        vault_start.0..vault_start.0 + vault.size(),
        pool_start.0..pool_start.0 + pool.size(),
        Arc::new(move |violation: &Violation| sink.lock().unwrap().push(violation.clone())),
    )));
    // The guest has no handler for the exception, so that it dies of it.
    let reason = vm.run().unwrap();
    assert!(matches!(reason, ExitReason::Crash(_)), "{reason}");
    let mut content = [0; PAGE];
    pool.read(0, &mut content).unwrap();
    assert_eq!(content[0], 0x11, "{reason}");
    vault.read(1, &mut content).unwrap();
    assert_eq!(content, [0; PAGE]);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 1, "{reason}");
    assert_eq!((seen[0].frame, seen[0].gpa), (1, (5 << 30) + 0x1008));
}

#[test]
fn regions_that_overlap_are_refused() {
    let Some(mut vm) = machine(SPIN, silent()) else {
        return;
    };
    let regions = Regions::new(512, 512, HostPages::Standard).unwrap();
    let (host, owner) = (regions.pool.guest_mapping(), regions.pool.clone());
    let [first, _] = vm.layout().place([PAGE as u64; 2]);
    let len = regions.pool.size();
    for (start, fits) in [
        (0, false),
        (first.0 + 1, false),
        (first.0, true),
        (first.0 + len - PAGE as u64, false),
        (first.0 + len, true),
    ] {
        // SAFETY: the pool owns its mapping, and nothing makes references to it.
        let result = unsafe { vm.add_region(GuestAddress(start), host, len, owner.clone()) };
        assert_eq!(result.is_ok(), fits, "{start:#x}");
    }
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    let file = NamedTempFile::new().unwrap();
    let make = |memory_bytes, vcpus| {
        let config = VmConfig {
            memory_bytes,
            pages: HostPages::Standard,
            vcpus,
            kernel: Kernel::open(file.path()).unwrap(),
            initramfs: None,
            cmdline: String::new(),
            console: silent(),
        };
        Vm::new(&config, StopHandle::default())
    };
    assert!(matches!(make(MEMORY, 0), Err(VmError::Vcpus(0))));
    assert!(matches!(make(1, 1), Err(VmError::Memory(_))));
    assert!(matches!(make(MEMORY, 1), Err(VmError::Loader(_))));
}
