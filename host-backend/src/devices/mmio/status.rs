//! The device status field (Virtio 1.2, 2.1): which value may follow which.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

/// The status after a reset.
pub(super) const RESET: u32 = 0;
/// The driver has noticed the device.
pub(super) const ACKNOWLEDGED: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
/// The driver knows how to drive the device and chooses features.
pub(super) const DRIVER: u32 = ACKNOWLEDGED | VIRTIO_CONFIG_S_DRIVER;
/// Both sides agree on the features; the driver sets up the queues.
pub(super) const FEATURES_OK: u32 = DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
/// The device is at work.
pub(super) const RUNNING: u32 = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
/// The driver has given up, in whatever status. The device waits for a reset.
pub(super) const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;
/// Set by the device alone, beside any other status.
pub(super) const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

/// What a valid change of the status asks of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing but the new value.
    Note,
    /// The features are final: check them.
    CheckFeatures,
    /// The queues are final: start the device.
    Activate,
}

/// Every valid change besides a reset and [`FAILED`], which are possible at any time.
const TRANSITIONS: [(u32, u32, Step); 4] = [
    (RESET, ACKNOWLEDGED, Step::Note),
    (ACKNOWLEDGED, DRIVER, Step::Note),
    (DRIVER, FEATURES_OK, Step::CheckFeatures),
    (FEATURES_OK, RUNNING, Step::Activate),
];

/// What the change from `old` to `new` asks for; `None` if it is not valid.
pub(super) fn step(old: u32, new: u32) -> Option<Step> {
    TRANSITIONS
        .iter()
        .find(|&&(from, to, _)| (from, to) == (old, new))
        .map(|&(_, _, step)| step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_steps_of_initialization_in_their_order_are_valid() {
        let mut valid = 0;
        for old in 0..=0xff {
            for new in 0..=0xff {
                valid += usize::from(step(old, new).is_some());
            }
        }
        assert_eq!(valid, TRANSITIONS.len());
        assert_eq!(step(FEATURES_OK, RUNNING), Some(Step::Activate));
        assert_eq!(step(DRIVER, RUNNING), None);
        assert_eq!(step(RUNNING, FEATURES_OK), None);
    }
}
