//! Offloads: what driver and tap interface do not do themselves, and the header that says so for a frame
//! (Virtio 1.2, 5.1.3 and 5.1.6).

use virtio_bindings::virtio_net::*;

use super::HEADER;

/// Offloads of a tap interface as flags of `TUNSETOFFLOAD`: what its reader, the guest, can handle.
pub(super) type TapOffloads = u32;

/// Checksums and segmentation, as every tap interface has them.
pub(super) const BASIC: TapOffloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;

/// Segmentation of TCP with explicit congestion notification.
pub(super) const ECN: TapOffloads = libc::TUN_F_TSO_ECN;

/// Features of the guest's side with their counterparts of the tap interface.
const RECEIVED: [(u32, TapOffloads); 4] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
];

/// Features that are nothing without one of others (Virtio 1.2, 5.1.3.1).
const NEEDED: [(u32, &[u32]); 6] = [
    (VIRTIO_NET_F_GUEST_TSO4, &[VIRTIO_NET_F_GUEST_CSUM]),
    (VIRTIO_NET_F_GUEST_TSO6, &[VIRTIO_NET_F_GUEST_CSUM]),
    (
        VIRTIO_NET_F_GUEST_ECN,
        &[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6],
    ),
    (VIRTIO_NET_F_HOST_TSO4, &[VIRTIO_NET_F_CSUM]),
    (VIRTIO_NET_F_HOST_TSO6, &[VIRTIO_NET_F_CSUM]),
    (
        VIRTIO_NET_F_HOST_ECN,
        &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6],
    ),
];

const NEEDS_CHECKSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const IS_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
const NO_SEGMENTATION: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const TCP_4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const TCP_6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const WITH_ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// Bytes of an Ethernet header with a VLAN tag.
const LINK_HEADER: usize = 14 + 4;

const NOT_AGREED: &str = "the driver asked for an offload that was not agreed on";

/// The features to offer on a tap interface with these offloads.
pub(super) fn offered(tap: TapOffloads) -> u64 {
    let to_guest = RECEIVED
        .iter()
        .filter(|(_, offload)| tap & offload != 0)
        .map(|&(feature, _)| feature);
    // Every tap interface with offloads takes these from its writer.
    let from_guest = [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
    ];
    to_guest
        .chain(from_guest.into_iter().filter(|_| tap != 0))
        .fold(0, |all, feature| all | 1 << feature)
}

/// What both sides have agreed on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Agreed {
    features: u64,
    /// The most that a frame may carry, if the driver knows it.
    mtu: Option<u16>,
}

impl Agreed {
    /// What a driver has accepted, without features whose requirements it has not accepted.
    pub(super) fn new(mut features: u64, mtu: Option<u16>) -> Self {
        for (feature, needed) in NEEDED {
            if !needed.iter().any(|needed| features & 1 << needed != 0) {
                features &= !(1 << feature);
            }
        }
        Self {
            features,
            mtu: mtu.filter(|_| features & 1 << VIRTIO_NET_F_MTU != 0),
        }
    }

    /// Whether a received frame may take several buffers.
    pub(super) fn merges_buffers(&self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// The offloads that the tap interface may use towards the guest.
    pub(super) fn tap(&self) -> TapOffloads {
        RECEIVED
            .iter()
            .filter(|&&(feature, _)| self.has(feature))
            .fold(0, |all, (_, offload)| all | offload)
    }

    fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// Whether a kind of segmentation is one of the features for TCP over IPv4, over IPv6, and with ECN.
    fn is_agreed(&self, kind: u8, [tcp_4, tcp_6, ecn]: [u32; 3]) -> bool {
        let is_agreed = match kind & !WITH_ECN {
            NO_SEGMENTATION => return kind == NO_SEGMENTATION,
            TCP_4 => self.has(tcp_4),
            TCP_6 => self.has(tcp_6),
            _ => false,
        };
        is_agreed && (kind & WITH_ECN == 0 || self.has(ecn))
    }

    /// Checks the header of a frame from the guest, and clears what means nothing; or says what is wrong with it.
    pub(super) fn check_outgoing(&self, packet: &mut [u8]) -> Result<(), &'static str> {
        let (header, frame) = packet.split_at_mut(HEADER);
        let mut given = Header::read(header);
        let needs_checksum = given.flags == NEEDS_CHECKSUM && self.has(VIRTIO_NET_F_CSUM);
        if given.flags != 0 && !needs_checksum {
            return Err(NOT_AGREED);
        }
        let kinds = [
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
        ];
        if !self.is_agreed(given.kind, kinds) {
            return Err(NOT_AGREED);
        }
        if needs_checksum && given.checksum_end() > frame.len() {
            return Err("the driver asked for a checksum outside of its frame");
        }
        if given.kind != NO_SEGMENTATION && (!needs_checksum || given.segment == 0) {
            return Err("the driver asked for segments without a size or a checksum");
        }
        if usize::from(given.header_length) > frame.len() {
            // A hint, which is often wrong.
            given.header_length = 0;
        }
        given.write(header, 0);
        Ok(())
    }

    /// Checks the header of a frame for the guest, and clears what it does not expect; false if it cannot take the frame,
    /// which was sent before this was agreed on.
    pub(super) fn check_incoming(&self, packet: &mut [u8]) -> bool {
        let (header, frame) = packet.split_at_mut(HEADER);
        let mut given = Header::read(header);
        given.flags &= NEEDS_CHECKSUM | IS_VALID;
        if !self.has(VIRTIO_NET_F_GUEST_CSUM) {
            if given.flags & NEEDS_CHECKSUM != 0 {
                return false;
            }
            given.flags = 0;
        }
        let kinds = [
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
        ];
        if !self.is_agreed(given.kind, kinds) {
            return false;
        }
        if let Some(mtu) = self.mtu
            && given.kind == NO_SEGMENTATION
            && frame.len() > LINK_HEADER + usize::from(mtu)
        {
            return false;
        }
        given.write(header, 1);
        true
    }
}

/// The parts of `struct virtio_net_hdr_v1` but the number of buffers.
struct Header {
    flags: u8,
    kind: u8,
    header_length: u16,
    segment: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Header {
    fn read(bytes: &[u8]) -> Self {
        let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            kind: bytes[1],
            header_length: number(2),
            segment: number(4),
            checksum_start: number(6),
            checksum_offset: number(8),
        }
    }

    /// Writes what has a meaning, and the number of buffers.
    fn write(&self, bytes: &mut [u8], buffers: u16) {
        bytes[..HEADER].fill(0);
        bytes[0] = self.flags;
        bytes[1] = self.kind;
        let mut number = |at: usize, value: u16| {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        if self.flags & NEEDS_CHECKSUM != 0 {
            number(6, self.checksum_start);
            number(8, self.checksum_offset);
        }
        if self.kind != NO_SEGMENTATION {
            number(2, self.header_length);
            number(4, self.segment);
        }
        number(10, buffers);
    }

    /// Where the checksum ends in the frame.
    fn checksum_end(&self) -> usize {
        usize::from(self.checksum_start) + usize::from(self.checksum_offset) + 2
    }
}

/// Writes how many buffers a received frame is in.
pub(super) fn set_buffers(packet: &mut [u8], buffers: u16) {
    packet[10..HEADER].copy_from_slice(&buffers.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: TapOffloads = BASIC | ECN;

    fn all() -> u64 {
        offered(ALL) | 1 << VIRTIO_NET_F_MTU
    }

    fn packet(header: [u8; HEADER], length: usize) -> Vec<u8> {
        let mut packet = header.to_vec();
        packet.resize(HEADER + length, 0);
        packet
    }

    /// A frame of 100 bytes from the guest with a header of these fields; the header as it goes on.
    fn sent(features: u64, fields: [u16; 6]) -> Result<[u8; HEADER], &'static str> {
        let [flags, kind, length, segment, start, offset] = fields;
        let mut header = [9; HEADER];
        header[0] = flags as u8;
        header[1] = kind as u8;
        for (at, value) in [(2, length), (4, segment), (6, start), (8, offset)] {
            header[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let mut packet = packet(header, 100);
        Agreed::new(features, None).check_outgoing(&mut packet)?;
        Ok(packet[..HEADER].try_into().unwrap())
    }

    #[test]
    fn a_tap_without_offloads_gives_none_to_the_guest() {
        assert_eq!(offered(0), 0);
        assert_eq!(offered(BASIC) & 1 << VIRTIO_NET_F_GUEST_ECN, 0);
        assert_ne!(offered(ALL) & 1 << VIRTIO_NET_F_GUEST_ECN, 0);
    }

    #[test]
    fn the_tap_leaves_to_the_guest_what_the_driver_has_accepted() {
        let tap = |features: &[u32]| {
            let features = features.iter().fold(0, |all, feature| all | 1 << feature);
            Agreed::new(features, None).tap()
        };
        assert_eq!(tap(&[]), 0);
        assert_eq!(tap(&[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4]), 0);
        assert_eq!(tap(&[VIRTIO_NET_F_GUEST_CSUM]), libc::TUN_F_CSUM);
        // What these require was not accepted.
        assert_eq!(tap(&[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_ECN]), 0);
        assert_eq!(
            tap(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN]),
            libc::TUN_F_CSUM
        );
        assert_eq!(Agreed::new(all(), None).tap(), ALL);
    }

    #[test]
    fn a_header_passes_with_what_was_agreed_on_and_nothing_else() {
        let csum = 1 << VIRTIO_NET_F_CSUM;
        let tso = csum | 1 << VIRTIO_NET_F_HOST_TSO4;
        let plain = [0, 0, 9, 9, 9, 9];
        assert_eq!(sent(0, plain), Ok([0; HEADER]));
        let checksum = [1, 0, 9, 9, 34, 16];
        let passed = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
        assert_eq!(sent(csum, checksum), Ok(passed));
        assert_eq!(sent(0, checksum), Err(NOT_AGREED));
        let segments = [1, 1, 54, 1448, 34, 16];
        let passed = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        assert_eq!(sent(tso, segments), Ok(passed));
        for features in [0, csum, csum | 1 << VIRTIO_NET_F_HOST_TSO6] {
            assert_eq!(sent(features, segments), Err(NOT_AGREED));
        }
        // The length of the headers is a hint.
        let long = [1, 1, 101, 1448, 34, 16];
        assert_eq!(sent(tso, long).unwrap()[2..4], [0, 0]);
    }

    #[test]
    fn hostile_headers_are_refused() {
        for fields in [
            // Flags.
            [2, 0, 0, 0, 0, 0],
            [3, 0, 0, 0, 34, 16],
            [0x81, 0, 0, 0, 34, 16],
            // Kinds: UDP, several, ECN of nothing, unknown.
            [1, 3, 54, 100, 34, 16],
            [1, 5, 54, 100, 34, 16],
            [1, 0x80, 54, 100, 34, 16],
            [1, 0x83, 54, 100, 34, 16],
            [1, 0xff, 54, 100, 34, 16],
            // A checksum beyond the frame's end.
            [1, 0, 0, 0, 99, 0],
            [1, 0, 0, 0, 34, 65],
            [1, 0, 0, 0, u16::MAX, u16::MAX],
            // Segments of no size, or without a checksum.
            [1, 1, 54, 0, 34, 16],
            [0, 1, 54, 100, 34, 16],
            [0, 4, 54, 100, 0, 0],
        ] {
            assert!(sent(all(), fields).is_err(), "{fields:?}");
        }
        assert!(sent(all(), [1, 0, 0, 0, 34, 64]).is_ok());
        assert!(sent(all(), [1, 0x84, 54, 1, 34, 16]).is_ok());
    }

    #[test]
    fn frames_from_before_the_agreement_are_not_for_this_driver() {
        let takes = |features, header: [u8; HEADER], length| {
            let mut packet = packet(header, length);
            let agreed = Agreed::new(features, Some(1500));
            agreed.check_incoming(&mut packet).then_some(packet)
        };
        let plain = [0; HEADER];
        let valid = [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let partial = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
        let segments = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        let alone = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        assert_eq!(takes(0, plain, 60).unwrap()[..HEADER], alone);
        assert_eq!(takes(0, valid, 60).unwrap()[..HEADER], alone);
        assert_eq!(takes(all(), valid, 60).unwrap()[0], 2);
        assert_eq!(takes(0, partial, 60), None);
        let expected = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0];
        assert_eq!(takes(all(), partial, 60).unwrap()[..HEADER], expected);
        assert_eq!(takes(1 << VIRTIO_NET_F_GUEST_CSUM, segments, 60), None);
        assert!(takes(all(), segments, 60_000).is_some());
        assert!(takes(all(), plain, 1518).is_some());
        assert_eq!(takes(all(), plain, 1519), None);
        assert!(takes(0, plain, 1519).is_some());
    }

    proptest! {
        #[test]
        fn what_passes_keeps_the_rules(
            features: u64,
            header: [u8; HEADER],
            length in 14usize..200,
        ) {
            let features = features & all();
            let agreed = Agreed::new(features, None);
            let mut packet = packet(header, length);
            if agreed.check_outgoing(&mut packet).is_ok() {
                let passed = Header::read(&packet);
                prop_assert!(passed.flags == 0 || features & 1 << VIRTIO_NET_F_CSUM != 0);
                prop_assert!(passed.flags & !NEEDS_CHECKSUM == 0);
                prop_assert!(passed.flags == 0 || passed.checksum_end() <= length);
                prop_assert!(usize::from(passed.header_length) <= length);
                if passed.kind != NO_SEGMENTATION {
                    prop_assert!(passed.flags == NEEDS_CHECKSUM && passed.segment != 0);
                }
                prop_assert_eq!(&packet[10..HEADER], &[0, 0]);
            }
        }
    }
}
