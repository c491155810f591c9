//! ACPI tables: how a stock kernel finds its CPUs, its interrupt controllers, its console and the
//! virtio-mmio devices.
//!
//! The platform is hardware-reduced (ACPI 6.5, section 4.1): there is no fixed hardware except the sleep and
//! reset registers of [`crate::vmm::power`], and instead of the ACPI interrupt a generic event device has one
//! for the power button.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use thiserror::Error;

use super::memory::{FIRMWARE_START, HIGH_RAM_START, IOAPIC_ADDRESS, LAPIC_ADDRESS};
use super::power;
use super::serial;

const OEM_ID: [u8; 6] = *b"VMSRS ";
const OEM_TABLE_ID: [u8; 8] = *b"VMSRSVMM";
const OEM_REVISION: u32 = 1;

/// Table revision of a DSDT whose integers have 64 bits (ACPI 6.5, section 5.2.11.1).
const DSDT_REVISION: u8 = 2;

/// IA-PC boot architecture flags (ACPI 6.5, table 5.10): no VGA, no message-signalled
/// interrupts, no CMOS clock. The absence of bit 1 says that there is no keyboard controller.
const BOOT_NO_VGA: u16 = 1 << 2;
const BOOT_NO_MSI: u16 = 1 << 3;
const BOOT_NO_CMOS_RTC: u16 = 1 << 5;

/// Alignment of each table in guest memory.
const TABLE_ALIGNMENT: u64 = 64;

/// Why the tables could not be built.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AcpiError {
    /// The firmware area below 1 MiB is full.
    #[error("the ACPI tables need {0} bytes, more than the firmware area holds: use fewer devices")]
    TooLarge(u64),
    /// A local APIC identifier does not fit the table's entry.
    #[error("{0} vCPUs are more than the ACPI tables can describe (254)")]
    TooManyVcpus(u32),
}

/// A virtio-mmio device as the tables describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// First guest physical address of its registers, below 4 GiB.
    pub base: u32,
    /// Length of its registers in bytes.
    pub len: u32,
    /// Its global system interrupt, edge-triggered and active high.
    pub gsi: u32,
}

/// The finished tables, to be copied to guest memory.
#[derive(Debug)]
pub struct Tables {
    /// Guest physical address of the first byte, and of the RSDP.
    pub address: u64,
    /// All tables, at the offsets their links say.
    pub bytes: Vec<u8>,
}

/// Builds all tables for `vcpus` CPUs, whose local APIC identifiers are their numbers, and for the
/// given devices.
///
/// # Errors
///
/// Fails when there are more CPUs or devices than the tables can describe.
pub fn build(vcpus: u32, devices: &[MmioDevice]) -> Result<Tables, AcpiError> {
    let mut area = Area::new(FIRMWARE_START);
    // The RSDP comes first, at the address the boot protocols hand over; it is written last, when
    // the address of the XSDT is known.
    let rsdp = area.reserve(Rsdp::len() as u64);
    let dsdt = area.append(&dsdt(devices));
    let fadt = area.append(&fadt(dsdt));
    let madt = area.append(&madt(vcpus)?);

    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.append(&xsdt);
    area.write(rsdp, &to_bytes(&Rsdp::new(OEM_ID, xsdt)));

    let len = area.bytes.len() as u64;
    if len > HIGH_RAM_START - FIRMWARE_START {
        return Err(AcpiError::TooLarge(len));
    }
    Ok(Tables {
        address: area.start,
        bytes: area.bytes,
    })
}

/// A growing piece of guest memory that starts at a fixed address.
struct Area {
    start: u64,
    bytes: Vec<u8>,
}

impl Area {
    fn new(start: u64) -> Self {
        Self {
            start,
            bytes: Vec::new(),
        }
    }

    fn reserve(&mut self, len: u64) -> u64 {
        let offset = (self.bytes.len() as u64).next_multiple_of(TABLE_ALIGNMENT);
        self.bytes.resize((offset + len) as usize, 0);
        self.start + offset
    }

    fn append(&mut self, table: &dyn Aml) -> u64 {
        let bytes = to_bytes(table);
        let address = self.reserve(bytes.len() as u64);
        self.write(address, &bytes);
        address
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        let offset = (address - self.start) as usize;
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        address.into(),
    )
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = (BOOT_NO_VGA | BOOT_NO_MSI | BOOT_NO_CMOS_RTC).into();
    fadt.reset_reg = port(power::RESET_PORT);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(vcpus: u32) -> Result<impl Aml, AcpiError> {
    let controller = LocalInterruptController::Address(LAPIC_ADDRESS);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, controller);
    for id in 0..vcpus {
        // 255 is the broadcast identifier.
        let id = u8::try_from(id)
            .ok()
            .filter(|id| *id < u8::MAX)
            .ok_or(AcpiError::TooManyVcpus(vcpus))?;
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC_ADDRESS, 0));
    Ok(madt)
}

fn dsdt(devices: &[MmioDevice]) -> Sdt {
    let mut dsdt = Sdt::new(
        *b"DSDT",
        36,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    // Appended at once, as each append recomputes the checksum of the whole table.
    let mut code = serial_device();
    code.extend(power_button());
    for (index, device) in devices.iter().enumerate() {
        code.extend(virtio_device(index, device));
    }
    // Soft off: the value that the kernel writes to the sleep control register.
    let soft_off = aml::Package::new(vec![&power::SLEEP_TYPE_OFF, &aml::ZERO]);
    code.extend(to_bytes(&aml::Name::new("_S5_".into(), &soft_off)));
    dsdt.append_slice(&code);
    dsdt
}

fn serial_device() -> Vec<u8> {
    let port = serial::COM1_PORT;
    to_bytes(&aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_DDN".into(), &"COM1"),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &interrupt(serial::COM1_IRQ),
                    &aml::IO::new(port, port, 1, serial::COM1_LEN as u8),
                ]),
            ),
        ],
    ))
}

/// The power button, and the generic event device whose interrupt tells that it was pressed (ACPI 6.5, sections
/// 4.8.2.2.1.2 and 5.6.9).
fn power_button() -> Vec<u8> {
    const PRESSED: u8 = 0x80;
    let button = to_bytes(&aml::Device::new(
        "_SB_.PWRB".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C0C")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
        ],
    ));
    let events = to_bytes(&aml::Device::new(
        "_SB_.GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&interrupt(power::BUTTON_GSI)]),
            ),
            // Its argument is the interrupt, of which there is one.
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&aml::Notify::new(&aml::Path::new("\\_SB_.PWRB"), &PRESSED)],
            ),
        ],
    ));
    [button, events].concat()
}

fn virtio_device(index: usize, device: &MmioDevice) -> Vec<u8> {
    to_bytes(&aml::Device::new(
        format!("_SB_.V{index:03X}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &index),
            // The device masters memory coherently with the CPU's caches.
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, device.base, device.len),
                    &interrupt(device.gsi),
                ]),
            ),
        ],
    ))
}

/// An interrupt resource: consumed, edge-triggered, active high, exclusive.
fn interrupt(gsi: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, gsi)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: MmioDevice = MmioDevice {
        base: 0xd000_0000,
        len: 0x1000,
        gsi: 16,
    };

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    impl Tables {
        fn u32(&self, address: u64) -> u32 {
            u32::from_le_bytes(self.at(address, 4).try_into().unwrap())
        }

        fn u64(&self, address: u64) -> u64 {
            u64::from_le_bytes(self.at(address, 8).try_into().unwrap())
        }

        fn at(&self, address: u64, len: usize) -> &[u8] {
            &self.bytes[(address - self.address) as usize..][..len]
        }

        /// The whole table at `address`, by the length in its header.
        fn table(&self, address: u64) -> &[u8] {
            self.at(address, self.u32(address + 4) as usize)
        }

        fn xsdt(&self) -> u64 {
            self.u64(self.address + 24)
        }

        fn find(&self, signature: &[u8; 4]) -> u64 {
            let entries = (self.table(self.xsdt()).len() - 36) as u64 / 8;
            (0..entries)
                .map(|index| self.u64(self.xsdt() + 36 + index * 8))
                .find(|table| self.at(*table, 4) == signature)
                .expect("table is linked from the XSDT")
        }
    }

    fn contains(haystack: &[u8], needle: &[u8]) -> bool {
        haystack.windows(needle.len()).any(|part| part == needle)
    }

    #[test]
    fn every_table_has_a_right_checksum_and_length() {
        let tables = build(4, &[DEVICE]).unwrap();
        assert_eq!(tables.at(tables.address, 8), b"RSD PTR ");
        assert_eq!(sum(tables.at(tables.address, 20)), 0);
        assert_eq!(sum(tables.at(tables.address, 36)), 0);
        let fadt = tables.find(b"FACP");
        let dsdt = tables.u64(fadt + 140);
        for table in [tables.xsdt(), fadt, tables.find(b"APIC"), dsdt] {
            assert_eq!(sum(tables.table(table)), 0, "table at {table:#x}");
        }
        assert_eq!(tables.table(fadt).len(), 276);
    }

    #[test]
    fn the_madt_lists_each_cpu_and_the_io_apic() {
        let tables = build(3, &[]).unwrap();
        let madt = tables.table(tables.find(b"APIC"));
        // Header of 44 bytes, 8 per local APIC, 12 for the I/O APIC.
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        for id in 0..3u8 {
            let entry = &madt[44 + usize::from(id) * 8..][..8];
            assert_eq!(entry, [0, 8, id, id, 1, 0, 0, 0]);
        }
    }

    #[test]
    fn the_dsdt_names_console_power_button_and_each_virtio_device() {
        let other = MmioDevice {
            base: 0xd000_1000,
            gsi: 17,
            ..DEVICE
        };
        let tables = build(1, &[DEVICE, other]).unwrap();
        let dsdt = tables.table(tables.u64(tables.find(b"FACP") + 140));
        let button = [&b"PWRB"[..], b"ACPI0013", b"_EVT"];
        let others = [&b"COM1"[..], b"LNRO0005", b"V000", b"V001", b"_S5_"];
        for needle in button.into_iter().chain(others) {
            assert!(contains(dsdt, needle), "{:?}", str::from_utf8(needle));
        }
        assert!(contains(dsdt, &0xd000_1000u32.to_le_bytes()));
    }

    #[test]
    fn more_cpus_than_apic_identifiers_are_refused() {
        assert!(build(255, &[]).is_ok());
        assert_eq!(build(256, &[]).unwrap_err(), AcpiError::TooManyVcpus(256));
    }

    #[test]
    fn more_devices_than_the_firmware_area_holds_are_refused() {
        let devices = vec![DEVICE; 4000];
        assert!(matches!(build(1, &devices), Err(AcpiError::TooLarge(_))));
    }
}
