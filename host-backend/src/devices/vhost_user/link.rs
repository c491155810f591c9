//! The connection to a daemon: what is told to it and asked of it.

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::DaemonStatus;
use super::queues::Traffic;
use super::rings::{RelayedQueue, Rings};

/// How long a daemon may take to start and to say what it can do.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a daemon may take to answer afterwards; a virtual CPU waits for it.
const LIMIT: Duration = Duration::from_secs(10);

/// Why a daemon cannot be used.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The protocol failed.
    #[error("{0}")]
    Protocol(String),
    /// The system refuses another descriptor.
    #[error("the host has no descriptor left")]
    Host(#[from] std::io::Error),
}

/// What a daemon can do.
pub(super) struct Offer {
    pub(super) features: u64,
    pub(super) config: Vec<u8>,
}

/// A connected daemon.
pub(super) struct Link {
    frontend: Frontend,
    /// The same connection.
    socket: Arc<UnixStream>,
    status: Arc<DaemonStatus>,
}

impl Link {
    /// Asks the daemon at the other end of `socket` what it can do for a device with so many queues, and for the first
    /// `config` bytes of its configuration space.
    pub(super) fn new(
        socket: UnixStream,
        queues: usize,
        config: usize,
        status: Arc<DaemonStatus>,
    ) -> Result<(Self, Offer), LinkError> {
        let mut link = Self {
            frontend: Frontend::from_stream(socket.try_clone()?, queues as u64),
            socket: Arc::new(socket),
            status,
        };
        let offer = link.talk(START_LIMIT, |daemon| meet(daemon, config));
        Ok((link, offer.map_err(LinkError::Protocol)?))
    }

    pub(super) fn socket(&self) -> Arc<UnixStream> {
        self.socket.clone()
    }

    pub(super) fn status(&self) -> Arc<DaemonStatus> {
        self.status.clone()
    }

    /// Lets the daemon work with these features on these queues. If it fails, it is lost.
    pub(super) fn start(
        &mut self,
        features: u64,
        ram: &GuestMemoryMmap,
        rings: &Rings,
        queues: &[RelayedQueue],
    ) {
        let regions: Vec<_> = regions(ram).chain(regions(&rings.memory)).collect();
        self.tell(|daemon| {
            daemon.set_features(features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())?;
            daemon.set_mem_table(&regions)?;
            for queue in queues {
                let index = usize::from(queue.driver.index);
                let size = virtio_queue::QueueT::size(&queue.driver.queue);
                let [descriptors, available, used] = queue.parts();
                daemon.set_vring_num(index, size)?;
                let place = VringConfigData {
                    queue_max_size: size,
                    queue_size: size,
                    desc_table_addr: descriptors,
                    avail_ring_addr: available,
                    used_ring_addr: used,
                    ..VringConfigData::default()
                };
                daemon.set_vring_addr(index, &place)?;
                daemon.set_vring_base(index, 0)?;
                daemon.set_vring_call(index, &queue.answer)?;
                daemon.set_vring_kick(index, &queue.ask)?;
                daemon.set_vring_enable(index, true)?;
            }
            Ok(())
        });
    }

    /// Waits for what the daemon is doing, stops its queues and takes RAM from it. If it fails, it is lost. A network card's
    /// daemon has nothing to finish: it stops between two frames.
    pub(super) fn stop(&mut self, traffic: &mut Traffic, rings: &Rings) {
        if self.status.is_lost() {
            // A part of it that goes on without the rest ends with the connection.
            let _ = self.socket.shutdown(Shutdown::Both);
            return;
        }
        let is_answered = traffic.is_answered();
        if is_answered && let Err(why) = self.finish(traffic.queues()) {
            return self.lose(&why);
        }
        let queues: Vec<_> = traffic
            .queues()
            .iter()
            .map(|queue| usize::from(queue.driver.index))
            .collect();
        let regions: Vec<_> = regions(&rings.memory).collect();
        self.tell(|daemon| {
            for &index in &queues {
                daemon.get_vring_base(index)?;
            }
            if !is_answered {
                // passt looks into the queues again when it gets other memory, and the buffers there are gone then.
                rings.clear();
                for &index in &queues {
                    daemon.set_vring_base(index, 0)?;
                }
            }
            daemon.set_mem_table(&regions).map(drop)
        });
    }

    /// Waits until the daemon has answered everything, which goes to nobody any more.
    fn finish(&self, queues: &mut [RelayedQueue]) -> Result<(), String> {
        let start = Instant::now();
        loop {
            for queue in &mut *queues {
                crate::devices::worker::drain(&queue.answer);
                while let Some(_answer) = queue
                    .next_answer()
                    .map_err(|_| "it answered what it was not asked".to_owned())?
                {}
            }
            if queues.iter().all(|queue| queue.waiting() == 0) {
                return Ok(());
            }
            let left = LIMIT.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(late(LIMIT));
            }
            let answers = queues.iter().map(|queue| queue.answer.as_raw_fd());
            let mut watched: Vec<_> = answers
                .chain([self.socket.as_raw_fd()])
                .map(|fd| libc::pollfd {
                    fd,
                    events: libc::POLLIN,
                    revents: 0,
                })
                .collect();
            // It fits: it is at most ten seconds.
            let left = left.as_millis() as libc::c_int + 1;
            // SAFETY: the array has as many elements as are told, and lives for the call.
            unsafe { libc::poll(watched.as_mut_ptr(), watched.len() as libc::nfds_t, left) };
            if watched.last().is_some_and(|socket| socket.revents != 0) {
                return Err("it closed the connection".into());
            }
        }
    }

    /// Talks to a daemon that is not lost; it is, if that fails.
    fn tell(&mut self, talk: impl FnOnce(&mut Frontend) -> vhost::Result<()>) {
        if self.status.is_lost() {
            return;
        }
        if let Err(why) = self.talk(LIMIT, talk) {
            self.lose(&why);
        }
    }

    fn lose(&self, why: &str) {
        // The end of its process is told by whoever supervises that.
        match is_closed(&self.socket) {
            true => self.status.disconnected(),
            false => self.status.broken(why),
        }
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Talks to the daemon, whose answers come within `limit`, or the connection is cut.
    fn talk<T>(
        &mut self,
        limit: Duration,
        talk: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, String> {
        let (done, waits) = mpsc::channel::<()>();
        let socket = &self.socket;
        let frontend = &mut self.frontend;
        thread::scope(|scope| {
            let guard = thread::Builder::new()
                .name("daemon-limit".into())
                .spawn_scoped(scope, move || {
                    let is_late = waits.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
                    if is_late {
                        // The receiver sees the end of the stream.
                        let _ = socket.shutdown(Shutdown::Both);
                    }
                    is_late
                })
                .map_err(|error| format!("the host has no thread left: {error}"))?;
            let result = talk(frontend);
            drop(done);
            let is_late = guard.join().unwrap_or(false);
            result.map_err(|error| match is_late {
                true => late(limit),
                false => describe(&error),
            })
        })
    }
}

fn late(limit: Duration) -> String {
    format!("it did not answer within {} s", limit.as_secs())
}

/// What went wrong in the protocol.
fn describe(error: &vhost::Error) -> String {
    use vhost::vhost_user::Error as Protocol;
    match error {
        vhost::Error::VhostUserProtocol(
            Protocol::PartialMessage | Protocol::Disconnected | Protocol::SocketBroken(_),
        ) => "it closed the connection".into(),
        vhost::Error::VhostUserProtocol(error) => format!("its answer is wrong: {error}"),
        error => format!("its answer is wrong: {error}"),
    }
}

/// Whether the other end is gone.
fn is_closed(socket: &UnixStream) -> bool {
    let mut watched = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: one element, which lives for the call.
    unsafe { libc::poll(&raw mut watched, 1, 0) };
    watched.revents & (libc::POLLHUP | libc::POLLERR) != 0
}

/// The first exchange.
fn meet(daemon: &mut Frontend, config: usize) -> vhost::Result<Offer> {
    let features = daemon.get_features()?;
    let known = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK;
    let offered = daemon.get_protocol_features()?;
    daemon.set_protocol_features(offered & known)?;
    if offered.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        // From here on a request that fails is known to have failed.
        daemon.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    daemon.set_owner()?;
    let config = match config {
        0 => Vec::new(),
        length => {
            let room = vec![0; length];
            let all = VhostUserConfigFlags::empty();
            daemon.get_config(0, length as u32, all, &room)?.1
        }
    };
    Ok(Offer { features, config })
}

/// How a daemon maps memory. Addresses are those of the guest, since only they mean anything to both sides.
fn regions(memory: &GuestMemoryMmap) -> impl Iterator<Item = VhostUserMemoryRegionInfo> {
    memory.iter().filter_map(|region| {
        // All memory that devices get is of files.
        let file = region.file_offset()?;
        Some(VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.start_addr().0,
            mmap_offset: file.start(),
            mmap_handle: file.file().as_raw_fd(),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn status() -> Arc<DaemonStatus> {
        Arc::new(DaemonStatus::new("--disk x".into(), Some(1), ""))
    }

    /// What comes of a daemon that does this.
    fn met(daemon: impl FnOnce(UnixStream) + Send + 'static) -> String {
        let (socket, other) = UnixStream::pair().unwrap();
        let daemon = thread::spawn(move || daemon(other));
        let result = Link::new(socket, 1, 60, status());
        daemon.join().unwrap();
        result.err().unwrap().to_string()
    }

    #[test]
    fn a_daemon_that_goes_away_is_told_from_one_that_is_wrong() {
        assert_eq!(met(drop), "it closed the connection");
        let wrong = met(|mut socket| {
            let mut request = [0; 12];
            socket.read_exact(&mut request).unwrap();
            socket.write_all(&[0xff; 20]).unwrap();
        });
        assert!(wrong.starts_with("its answer is wrong"), "{wrong}");
    }

    #[test]
    fn a_daemon_that_says_nothing_is_given_up() {
        let (socket, _silent) = UnixStream::pair().unwrap();
        let mut link = Link {
            frontend: Frontend::from_stream(socket.try_clone().unwrap(), 1),
            socket: Arc::new(socket),
            status: status(),
        };
        let result = link.talk(Duration::from_millis(1), |daemon| daemon.get_features());
        assert_eq!(result.unwrap_err(), late(Duration::from_millis(1)));
    }
}
