//! Boots a kernel on the console of this terminal: the VMM alone, without the VMSRS device.
//!
//! Usage: `boot KERNEL [INITRAMFS [VCPUS [MEMORY_MIB [PARAMETERS]]]]`

use std::fs;

use anyhow::Context;
use vmsrs_host::host_memory::HostPages;
use vmsrs_host::vmm::console::Console;
use vmsrs_host::vmm::loader::Kernel;
use vmsrs_host::vmm::signals::Termination;
use vmsrs_host::vmm::{StopHandle, Vm, VmConfig};

fn main() -> anyhow::Result<()> {
    let termination = Termination::block()?;
    env_logger::init();
    let mut args = std::env::args().skip(1);
    let kernel = Kernel::open(args.next().context("give a kernel")?.as_ref())?;
    let initramfs = args.next().map(fs::read).transpose()?;
    let vcpus = args.next().map_or(Ok(1), |arg| arg.parse())?;
    let mebibytes = args.next().map_or(Ok(256), |arg| arg.parse::<u64>())?;
    let stop = StopHandle::default();
    let config = VmConfig {
        memory_bytes: mebibytes << 20,
        pages: HostPages::Standard,
        vcpus,
        kernel,
        initramfs,
        cmdline: args.next().unwrap_or_default(),
        console: Console::stdio()?,
    };
    let vm = Vm::new(&config, stop)?;
    termination.stops(vm.stop_handle())?;
    let reason = vm.run()?;
    println!("{reason}");
    Ok(())
}
