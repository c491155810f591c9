//! An incident for tests.

use vmsrs_protocol::incident::REGISTERS;

use super::view::IncidentView;
use crate::control::{
    AddressFacts, BlockFacts, BlockState, ChangeFacts, DraftFacts, IncidentDetail, IncidentFacts,
    IncidentOutcome, IncidentSummary, LeftOpenFacts, Place, ProgramFacts, RequestFacts, Restored,
    SealedWriteFacts,
};
use crate::symbols::{Found, Frame, Trace};

/// A buffer overflow, with everything that can be known about it.
pub(super) fn view() -> IncidentView {
    let block = BlockFacts {
        address: 0x1100_0000_3f00,
        size: 40,
        was: Some(BlockState::Live),
        became: Some(BlockState::Live),
    };
    let frame = Frame {
        level: 0,
        address: 0x5555_5555_6789,
        module: Some("/usr/bin/ledger".into()),
        module_offset: Some(0x6789),
        function: Some("append".into()),
        file: Some("/src/ledger.c".into()),
        line: Some(42),
        column: Some(7),
        inlined: true,
        found: Found::Registers,
        machinery: false,
    };
    IncidentView {
        detail: IncidentDetail {
            summary: IncidentSummary {
                number: 7,
                at_ms: 0,
                kind: "foreign-write".into(),
                outcome: IncidentOutcome::Recovered,
                app: Some("ledger".into()),
                domain: Some("user-7".into()),
                address: Some(0x1100_0000_4004),
            },
            instruction: Some(0x5555_5555_6789),
            facts: IncidentFacts::Request(Box::new(RequestFacts {
                tag: 99,
                signal: 11,
                code: 2,
                pid: 100,
                tid: 101,
                thread: "worker".into(),
                address_at: Some(AddressFacts {
                    place: Place::Guard,
                    app: Some("ledger".into()),
                    domain: Some("user-7".into()),
                    behind: Some(4),
                }),
                recovery_ns: 4_200,
                restored: Restored::Sealed,
                left_open: Some(LeftOpenFacts {
                    descriptors: 1,
                    bytes: 4 << 20,
                    is_estimate: false,
                }),
                drafts_total: 3,
                drafts: vec![DraftFacts {
                    domain: "user-7".into(),
                    page: 3,
                    address: 0x1100_0000_3000,
                    changed_bytes: Some(216),
                    first_changed: Some(0xf28),
                    changes: vec![
                        ChangeFacts {
                            address: 0x1100_0000_3010,
                            old: 7u64.to_le_bytes().to_vec(),
                            new: 8u64.to_le_bytes().to_vec(),
                            block: None,
                        },
                        ChangeFacts {
                            address: 0x1100_0000_3f28,
                            old: vec![0; 208],
                            new: vec![b'A'; 208],
                            block: Some(block),
                        },
                    ],
                }],
                program: Some(ProgramFacts {
                    stack_address: 0x7f00_0000_0000,
                    stack_low: 0x7eff_fffc_0000,
                    stack_high: 0x7f00_0000_1000,
                    stack: vec![1, 2, 3],
                    modules: Vec::new(),
                    message: "a sum does not add up".into(),
                }),
                details_dropped: false,
                registers: (0..REGISTERS as u64).collect(),
                backtrace: vec![0x5555_5555_7000],
            })),
        },
        address_is: Some(
            "the guard after domain user-7 of app ledger, 4 bytes past its end".into(),
        ),
        trace: Trace {
            frames: vec![
                frame.clone(),
                Frame {
                    function: Some("serve".into()),
                    line: Some(50),
                    inlined: false,
                    ..frame.clone()
                },
                Frame {
                    function: Some("vmsrs::run::enter".into()),
                    file: Some("guest-lib/src/run/mod.rs".into()),
                    inlined: false,
                    ..frame.clone()
                },
                Frame {
                    level: 1,
                    address: 0x7fff_1234,
                    module: Some("/lib/libplug.so".into()),
                    module_offset: Some(0x1234),
                    function: None,
                    file: None,
                    line: None,
                    column: None,
                    inlined: false,
                    found: Found::Scan,
                    machinery: false,
                },
            ],
            notes: vec!["no file for libplug.so: give the folder".into()],
        },
    }
}

/// A store of the kernel into a sealed page.
pub(super) fn sealed_write() -> SealedWriteFacts {
    SealedWriteFacts {
        frame: 5,
        vcpu: 1,
        physical: 0x1_0000_5000,
        user: false,
        cpl: 0,
        cr3: 0x1234_5000,
        page: Some(9),
        code: vec![0x48, 0x89, 0x07],
        registers: (0x100..0x100 + REGISTERS as u64).collect(),
        count: 2,
    }
}

/// One whose every text is an attack on a terminal and on a browser.
pub(super) fn hostile() -> IncidentView {
    let evil =
        "\x1b[2J\"'><script>alert(1)</script>&amp;<img src=x onerror=alert(2)>\u{202e}\u{9b}2J";
    let mut view = view();
    let text = || Some(evil.to_owned());
    view.detail.summary.kind = evil.into();
    view.detail.summary.app = text();
    view.detail.summary.domain = text();
    view.address_is = text();
    for frame in &mut view.trace.frames {
        frame.module = text();
        frame.function = text();
        frame.file = text();
    }
    view.trace.notes = vec![evil.into()];
    if let IncidentFacts::Request(request) = &mut view.detail.facts {
        request.thread = evil.into();
        for draft in &mut request.drafts {
            draft.domain = evil.into();
            for change in &mut draft.changes {
                let length = change.new.len();
                change.new = evil.bytes().cycle().take(length).collect();
            }
        }
        if let Some(program) = &mut request.program {
            program.message = evil.into();
        }
    }
    view
}
