//! The image of a guest with the ledger.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use vmsrs_bed::{Bed, Flavour, Image, Kernel};
use vmsrs_report::steps::Steps;

use super::{GUEST, PORT};

/// What guests are made of.
pub struct Parts {
    /// The test-bed.
    pub bed: Bed,
    /// The guests' kernel.
    pub kernel: Kernel,
    /// The driver.
    pub driver: PathBuf,
    /// The module that makes stray writes.
    pub stray: PathBuf,
}

impl Parts {
    /// Fetches the kernel and builds the driver for it.
    ///
    /// # Errors
    ///
    /// When something can be neither fetched nor built.
    pub fn prepare(steps: &Steps, flavour: Flavour) -> Result<Self> {
        let step = steps.begin("fetch Debian's kernels");
        let bed = Bed::with_progress(Arc::new(steps.detail()))?;
        let kernel = bed.guest_kernel(flavour)?;
        step.end(kernel.release());

        let step = steps.begin("build the driver");
        let modules = bed.modules(&kernel)?;
        step.end("vmsrs.ko");
        Ok(Self {
            bed,
            kernel,
            driver: modules.driver,
            stray: modules.test,
        })
    }

    /// An image with the network's modules and `server` as `ledger`.
    ///
    /// # Errors
    ///
    /// When busybox cannot be fetched.
    pub fn image(&self, server: &Path) -> Result<Image> {
        let image = self.bed.image()?.modules(["virtio_mmio", "virtio_net"]);
        Ok(image.binary(server, "/bin/ledger"))
    }
}

/// The beginning of the guest's init: its network.
#[must_use]
pub fn network() -> String {
    format!("ifconfig eth0 {GUEST} netmask 255.255.255.0 up\n")
}

/// The command that starts the server.
#[must_use]
pub fn start() -> String {
    format!("ledger {PORT}")
}
