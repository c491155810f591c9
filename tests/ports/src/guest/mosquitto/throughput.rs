//! What messages cost the server: CPU time by a clock that counts instructions.
//!
//! A client with several connections sends a message on each and then reads all that comes, so the server finds several
//! connections ready, as it does under load.

use anyhow::{Context, Result, bail};
use vmsrs_bed::process;

use super::client::{
    Client, Hello, PINGREQ, PINGRESP, PUBACK, PUBLISH, Received, message, packet, publish,
    subscribe,
};
use super::start;
use crate::guest::server::{committed, seal};
use crate::guest::tell;
use crate::plan::{Finding, Mode, Throughput};

/// Publishers, each with a subscriber.
const PAIRS: usize = 8;
/// Sizes of messages, and by what their number is divided.
const VALUES: [(usize, u32); 2] = [(100, 1), (4096, 2)];

/// What is sent.
#[derive(Clone, Copy)]
struct Mix {
    name: &'static str,
    acknowledged: bool,
    retain: bool,
    /// Subscribers that get each message.
    copies: usize,
}

const MIXES: [Mix; 5] = [
    Mix {
        name: "ping",
        acknowledged: false,
        retain: false,
        copies: 0,
    },
    Mix {
        name: "QoS 0, one subscriber",
        acknowledged: false,
        retain: false,
        copies: 1,
    },
    Mix {
        name: "QoS 1, one subscriber",
        acknowledged: true,
        retain: false,
        copies: 1,
    },
    Mix {
        name: "QoS 0, eight subscribers",
        acknowledged: false,
        retain: false,
        copies: PAIRS,
    },
    Mix {
        name: "QoS 1, retained, one subscriber",
        acknowledged: true,
        retain: true,
        copies: 1,
    },
];

struct Clients {
    publishers: Vec<Client>,
    subscribers: Vec<Client>,
}

impl Clients {
    fn new() -> Result<Self> {
        let mut clients = Self {
            publishers: Vec::new(),
            subscribers: Vec::new(),
        };
        for number in 0..PAIRS {
            let connect = |role: &str| {
                Client::connect(&Hello {
                    name: &format!("{role}-{number}"),
                    fresh: true,
                    will: None,
                })
            };
            clients.publishers.push(connect("publisher")?.0);
            let mut subscriber = connect("subscriber")?.0;
            subscriber.send(&subscribe(&format!("one/{number}")))?;
            subscriber.receive()?;
            subscriber.send(&subscribe("all/#"))?;
            subscriber.receive()?;
            clients.subscribers.push(subscriber);
        }
        Ok(clients)
    }

    /// Each publisher sends once; all that is to come is read.
    fn round(&mut self, mix: Mix, payload: &[u8]) -> Result<()> {
        for (number, publisher) in self.publishers.iter_mut().enumerate() {
            let topic = match mix.copies {
                1 => format!("one/{number}"),
                _ => format!("all/{number}"),
            };
            publisher.send(&match mix.copies {
                0 => packet(PINGREQ, &[]),
                _ => publish(&topic, payload, mix.acknowledged, mix.retain),
            })?;
        }
        for publisher in &mut self.publishers {
            match (mix.copies, mix.acknowledged) {
                (0, _) => expect(publisher, PINGRESP)?,
                (_, true) => expect(publisher, PUBACK)?,
                _ => {}
            }
        }
        for subscriber in &mut self.subscribers {
            for _ in 0..mix.copies {
                let Received::Packet(first, body) = subscriber.receive()? else {
                    bail!("no message");
                };
                if first & 0xf0 != PUBLISH {
                    bail!("{first:02x} instead of a message");
                }
                let message = message(first, &body)?;
                if message.payload != payload {
                    bail!("another payload");
                }
                subscriber.acknowledge(&message)?;
            }
        }
        Ok(())
    }
}

fn expect(client: &mut Client, wanted: u8) -> Result<()> {
    match client.receive()? {
        Received::Packet(first, _) if first == wanted => Ok(()),
        other => bail!("{other:?} instead of {wanted:02x}"),
    }
}

/// Measures both builds.
pub(super) fn measure(commands: u32) -> Result<()> {
    for mode in Mode::ALL {
        let server = start(&format!("/{}/mosquitto", mode.name()), &[])?;
        process::let_others_run().context("SCHED_BATCH")?;
        let mut clients = Clients::new()?;
        for (value_bytes, divisor) in VALUES {
            for mix in MIXES {
                let payload = vec![b'v'; value_bytes];
                let rounds = (commands / divisor / (mix.copies.max(1) * PAIRS) as u32).max(4);
                (0..rounds / 2).try_for_each(|_| clients.round(mix, &payload))?;
                seal()?;
                let (commits, pages, _) = committed()?;
                let before = server.cpu_ns()?;
                (0..rounds).try_for_each(|_| clients.round(mix, &payload))?;
                let spent = server.cpu_ns()? - before;
                let sent = rounds * PAIRS as u32;
                seal()?;
                let (all_commits, all_pages, resident) = committed()?;
                println!(
                    "{}, {value_bytes} bytes: {sent} sent, {} commits of {} pages, {resident} resident",
                    mix.name,
                    all_commits - commits,
                    all_pages - pages
                );
                tell(&Finding::Throughput(Throughput {
                    mode,
                    mix: mix.name.to_owned(),
                    value_bytes,
                    vcpus: 1,
                    nanoseconds: spent as f64 / f64::from(sent),
                    commands: sent,
                }))?;
            }
        }
    }
    Ok(())
}
