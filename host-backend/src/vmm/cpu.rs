//! The state in which a vCPU starts: features, model-specific registers, local APIC, and the
//! registers that the boot protocol of the kernel asks for.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_fpu,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use thiserror::Error;

use super::loader::Entry;

/// Why a vCPU could not be set up.
#[derive(Debug, Error)]
pub enum CpuError {
    /// A request to KVM failed.
    #[error("KVM refused to {what} of a vCPU")]
    Kvm {
        /// What was requested.
        what: &'static str,
        /// The system's error.
        source: kvm_ioctls::Error,
    },
    /// More CPUID entries than KVM takes.
    #[error("the CPU has more CPUID entries than KVM accepts")]
    TooManyCpuidEntries,
    /// KVM took only some of the registers.
    #[error("KVM refused to set model-specific register {0:#x} of a vCPU")]
    Msr(u32),
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> CpuError {
    move |source| CpuError::Kvm { what, source }
}

/// Model-specific registers at boot: number and value.
const BOOT_MSRS: &[(u32, u64)] = &[
    // SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP
    (0x174, 0),
    (0x175, 0),
    (0x176, 0),
    // STAR, LSTAR, CSTAR, SYSCALL_MASK, KERNEL_GS_BASE
    (0xc000_0081, 0),
    (0xc000_0082, 0),
    (0xc000_0083, 0),
    (0xc000_0084, 0),
    (0xc000_0102, 0),
    // MISC_ENABLE: fast strings.
    (0x1a0, 1),
    // MTRR_DEF_TYPE: enabled, write-back by default. Without it Linux leaves the page
    // attribute table off, and the guest could map the window uncached only.
    (0x2ff, 0x806),
];

/// The CPUID table of the guest: what KVM supports, with a topology of one package that has
/// `vcpus` cores of one thread each.
#[derive(Debug, Clone)]
pub struct CpuTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    vcpus: u32,
}

const LEAF_1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF_1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF_1_EDX_HTT: u32 = 1 << 28;

impl CpuTemplate {
    /// Asks KVM what it supports.
    ///
    /// # Errors
    ///
    /// Fails when KVM does not answer.
    pub fn new(system: &Kvm, vcpus: u32) -> Result<Self, CpuError> {
        let supported = system
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("tell the supported features"))?;
        let mut template = Self::from_entries(supported.as_slice(), vcpus);
        // The in-kernel local APIC emulates the deadline timer on every host; KVM leaves it to us
        // to say so, since it cannot know that the local APIC will be in the kernel.
        if system.check_extension(Cap::TscDeadlineTimer) {
            template.each(1, |entry| entry.ecx |= LEAF_1_ECX_TSC_DEADLINE);
        }
        Ok(template)
    }

    fn from_entries(supported: &[kvm_cpuid_entry2], vcpus: u32) -> Self {
        let has_topology = supported.iter().any(|entry| entry.function == 0xb);
        let mut template = Self {
            // Leaf 0x1f repeats leaf 0xb with more levels, none of which exist here.
            entries: supported
                .iter()
                .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
                .copied()
                .collect(),
            vcpus,
        };
        if has_topology {
            template.entries.extend(template.topology_leaf());
        }
        template.describe_cores();
        template
    }

    /// Number of bits of a local APIC identifier that number the cores.
    fn core_bits(&self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    /// Leaf 0xb: one thread per core, then all cores of the package.
    fn topology_leaf(&self) -> [kvm_cpuid_entry2; 2] {
        const LEVEL_THREAD: u32 = 1 << 8;
        const LEVEL_CORE: u32 = 2 << 8;
        let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
            function: 0xb,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: index | kind,
            ..Default::default()
        };
        [
            level(0, 0, 1, LEVEL_THREAD),
            level(1, self.core_bits(), self.vcpus, LEVEL_CORE),
        ]
    }

    fn describe_cores(&mut self) {
        let (vcpus, bits) = (self.vcpus, self.core_bits());
        self.each(1, |entry| {
            entry.ecx |= LEAF_1_ECX_HYPERVISOR;
            entry.ebx = (entry.ebx & 0x0000_ffff) | ((vcpus.min(255)) << 16);
            entry.edx &= !LEAF_1_EDX_HTT;
            if vcpus > 1 {
                entry.edx |= LEAF_1_EDX_HTT;
            }
        });
        // Caches (Intel: leaf 4, AMD: leaf 0x8000001d): the third level is shared by all cores.
        for leaf in [4, 0x8000_001d] {
            self.each(leaf, |entry| {
                if entry.eax & 0x1f == 0 {
                    return;
                }
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { vcpus - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | (sharing.min(0xfff) << 14);
                if leaf == 4 {
                    entry.eax |= ((1 << bits) - 1u32).min(0x3f) << 26;
                }
            });
        }
        // AMD: number of cores, and bits of the identifier that number them.
        self.each(0x8000_0008, |entry| {
            entry.ecx = (entry.ecx & !0xf0ff) | (vcpus - 1).min(0xff) | (bits << 12);
        });
    }

    fn each(&mut self, leaf: u32, change: impl Fn(&mut kvm_cpuid_entry2)) {
        self.entries
            .iter_mut()
            .filter(|entry| entry.function == leaf)
            .for_each(change);
    }

    /// The state components that XCR0 can turn on: leaf 0xd, EDX:EAX. 0 without XSAVE.
    fn state_components(&self) -> u64 {
        self.entries
            .iter()
            .find(|entry| entry.function == 0xd && entry.index == 0)
            .map_or(0, |entry| u64::from(entry.edx) << 32 | u64::from(entry.eax))
    }

    /// The table of vCPU `id`, whose local APIC identifier is `id`.
    fn for_vcpu(&self, id: u32) -> Vec<kvm_cpuid_entry2> {
        let mut template = self.clone();
        template.each(1, |entry| {
            entry.ebx = (entry.ebx & 0x00ff_ffff) | (id << 24);
        });
        template.each(0xb, |entry| entry.edx = id);
        // AMD: identifier, core number, and node 0 of 1.
        template.each(0x8000_001e, |entry| {
            entry.eax = id;
            entry.ebx = id & 0xff;
            entry.ecx = 0;
        });
        template.entries
    }
}

/// Gives a fresh vCPU its features, model-specific registers, FPU and local APIC. If `entry` is
/// given it is the boot CPU and gets its registers, too; the others wait for the kernel to start
/// them.
///
/// # Errors
///
/// Fails when KVM refuses a part of the state.
pub fn set_up(
    vcpu: &VcpuFd,
    id: u32,
    template: &CpuTemplate,
    entry: Option<&Entry>,
) -> Result<(), CpuError> {
    let cpuid =
        CpuId::from_entries(&template.for_vcpu(id)).map_err(|_| CpuError::TooManyCpuidEntries)?;
    vcpu.set_cpuid2(&cpuid).map_err(kvm("set the features"))?;
    set_msrs(vcpu)?;
    set_xcr0(vcpu, template)?;
    let fpu = kvm_fpu {
        // The values after FNINIT and reset.
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu).map_err(kvm("set the FPU state"))?;
    set_lapic_lines(vcpu)?;
    match entry {
        Some(entry) => set_registers(vcpu, entry),
        None => Ok(()),
    }
}

/// Turns on every state component that the guest's CPUID table names.
///
/// A guest does that by itself with XSETBV. KVM computes the sizes in leaf 0xd from the value it
/// knows of, and a KVM on a software CPU that does not intercept XSETBV (QEMU's TCG) knows only
/// what it is given here: with the value after reset, Linux finds the sizes contradictory and turns
/// XSAVE, AVX and protection keys off.
fn set_xcr0(vcpu: &VcpuFd, template: &CpuTemplate) -> Result<(), CpuError> {
    let components = template.state_components();
    if components == 0 {
        return Ok(());
    }
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0].value = components;
    vcpu.set_xcrs(&xcrs)
        .map_err(kvm("enable the extended state"))
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), CpuError> {
    let entries: Vec<_> = BOOT_MSRS
        .iter()
        .map(|&(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    let msrs = Msrs::from_entries(&entries).expect("a handful of entries fits");
    let set = vcpu
        .set_msrs(&msrs)
        .map_err(kvm("set the model-specific registers"))?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => Err(CpuError::Msr(refused.index)),
    }
}

/// Connects LINT0 to the external interrupt and LINT1 to the NMI, as firmware leaves them (Intel
/// SDM, volume 3, section 11.5.1).
fn set_lapic_lines(vcpu: &VcpuFd) -> Result<(), CpuError> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const DELIVERY_MASK: u32 = 7 << 8;
    const DELIVERY_NMI: u32 = 4 << 8;
    const DELIVERY_EXTINT: u32 = 7 << 8;
    let mut lapic = vcpu.get_lapic().map_err(kvm("read the local APIC"))?;
    for (offset, mode) in [(LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)] {
        let field = &mut lapic.regs[offset..offset + 4];
        let mut bytes = [0; 4];
        for (byte, register) in bytes.iter_mut().zip(field.iter()) {
            *byte = *register as u8;
        }
        let value = (u32::from_le_bytes(bytes) & !DELIVERY_MASK) | mode;
        for (register, byte) in field.iter_mut().zip(value.to_le_bytes()) {
            *register = byte as _;
        }
    }
    vcpu.set_lapic(&lapic).map_err(kvm("set the local APIC"))
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The one bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 2;

/// Selectors of the boot protocol: `__BOOT_CS`, `__BOOT_DS`, `__BOOT_TSS`. No descriptor table is
/// needed, as the kernel loads its own before it loads a segment register.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

const SEGMENT_CODE: u8 = 0xb;
const SEGMENT_DATA: u8 = 0x3;
const SEGMENT_TSS: u8 = 0xb;

/// A flat segment over 4 GiB.
fn flat_segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

fn set_registers(vcpu: &VcpuFd, entry: &Entry) -> Result<(), CpuError> {
    let mut sregs = vcpu.get_sregs().map_err(kvm("read the registers"))?;
    let mut regs = kvm_regs {
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    let long = match *entry {
        Entry::Linux64 {
            rip,
            zero_page,
            page_tables,
        } => {
            regs.rip = rip;
            regs.rsi = zero_page;
            sregs.cr3 = page_tables;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.efer |= EFER_LME | EFER_LMA;
            true
        }
        Entry::Pvh { rip, start_info } => {
            regs.rip = rip;
            regs.rbx = start_info;
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            false
        }
    };
    sregs.cs = flat_segment(BOOT_CS, SEGMENT_CODE, long);
    let data = flat_segment(BOOT_DS, SEGMENT_DATA, false);
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: BOOT_TSS,
        type_: SEGMENT_TSS,
        present: 1,
        ..Default::default()
    };
    vcpu.set_sregs(&sregs)
        .map_err(kvm("set the segment and control registers"))?;
    vcpu.set_regs(&regs)
        .map_err(kvm("set the general registers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ..Default::default()
        }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_apic_identifier_in_every_leaf() {
        let supported = [
            entry(0),
            entry(1),
            entry(0xb),
            entry(0x1f),
            entry(0x8000_001e),
        ];
        let template = CpuTemplate::from_entries(&supported, 3);
        for id in 0..3 {
            let entries = template.for_vcpu(id);
            assert_eq!(find(&entries, 1, 0).ebx >> 24, id);
            assert_eq!(find(&entries, 0xb, 0).edx, id);
            assert_eq!(find(&entries, 0xb, 1).edx, id);
            assert_eq!(find(&entries, 0x8000_001e, 0).eax, id);
            assert!(!entries.iter().any(|entry| entry.function == 0x1f));
        }
    }

    #[test]
    fn the_topology_is_one_package_of_single_threaded_cores() {
        let supported = [entry(1), entry(0xb), entry(0x8000_0008)];
        let entries = CpuTemplate::from_entries(&supported, 3).for_vcpu(0);
        assert_eq!(find(&entries, 0xb, 0).ebx, 1);
        assert_eq!(find(&entries, 0xb, 1).ebx, 3);
        assert_eq!(find(&entries, 0xb, 1).eax, 2);
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 2 | (2 << 12));
        assert_ne!(find(&entries, 1, 0).edx & LEAF_1_EDX_HTT, 0);
        assert_ne!(find(&entries, 1, 0).ecx & LEAF_1_ECX_HYPERVISOR, 0);
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let entries = CpuTemplate::from_entries(&[entry(1), entry(0xb)], 1).for_vcpu(0);
        assert_eq!(find(&entries, 1, 0).edx & LEAF_1_EDX_HTT, 0);
        assert_eq!(find(&entries, 0xb, 1).eax, 0);
    }
}
