//! The options that ask for devices with a daemon, as they are written.

use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use crate::devices::net::{MTU_MIN, mac_for};
use crate::devices::vhost_user::{Kind, TAG_MAX};

/// Why such an option is invalid.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DaemonOptionError {
    /// No file is named.
    #[error("`{0}` names no file: give FILE[,format=raw|qcow2][,readonly]")]
    NoFile(String),
    /// Something after the file of a disk.
    #[error(
        "`{0}` is not an option of a disk: give FILE[,format=raw|qcow2][,readonly], where FILE has \
         no comma"
    )]
    Disk(String),
    /// Not a shared folder.
    #[error("`{0}` is not a shared folder: give TAG=FOLDER, for example data=/srv/data")]
    Share(String),
    /// A tag that the guest cannot use.
    #[error("the tag `{0}` is not possible: give 1 to {TAG_MAX} bytes without white space")]
    Tag(String),
    /// Not a device of another daemon.
    #[error(
        "`{0}` is not a device: give blk,socket=PATH or fs,socket=PATH,tag=TAG or net,socket=PATH[,mtu=BYTES]"
    )]
    VhostUser(String),
    /// An MTU that a network card cannot have.
    #[error("the MTU `{0}` is not possible: give {MTU_MIN} to {max} bytes", max = u16::MAX)]
    Mtu(String),
}

/// A disk: `FILE[,format=raw|qcow2][,readonly]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOption {
    /// As it was written.
    pub text: String,
    /// The image, or a block device.
    pub file: PathBuf,
    /// Whether the image has the format qcow2, and not that of the disk itself.
    pub is_qcow2: bool,
    /// The guest cannot write.
    pub is_readonly: bool,
}

impl FromStr for DiskOption {
    type Err = DaemonOptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(',');
        let file = words.next().unwrap_or_default();
        if file.is_empty() {
            return Err(DaemonOptionError::NoFile(text.to_owned()));
        }
        let mut disk = Self {
            text: text.to_owned(),
            file: file.into(),
            is_qcow2: false,
            is_readonly: false,
        };
        for word in words {
            match word {
                "format=raw" => disk.is_qcow2 = false,
                "format=qcow2" => disk.is_qcow2 = true,
                "readonly" => disk.is_readonly = true,
                _ => return Err(DaemonOptionError::Disk(word.to_owned())),
            }
        }
        Ok(disk)
    }
}

/// A shared folder: `TAG=FOLDER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareOption {
    /// As it was written.
    pub text: String,
    /// The name by which the guest mounts it.
    pub tag: String,
    /// The folder.
    pub folder: PathBuf,
}

impl FromStr for ShareOption {
    type Err = DaemonOptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tag, folder) = text
            .split_once('=')
            .filter(|(_, folder)| !folder.is_empty())
            .ok_or_else(|| DaemonOptionError::Share(text.to_owned()))?;
        Ok(Self {
            text: text.to_owned(),
            tag: checked_tag(tag)?,
            folder: folder.into(),
        })
    }
}

/// A device of a daemon that the operator runs: `blk,socket=PATH`, `fs,socket=PATH,tag=TAG` or `net,socket=PATH[,mtu=BYTES]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUserOption {
    /// As it was written.
    pub text: String,
    /// What the daemon serves.
    pub kind: Kind,
    /// Where it listens.
    pub socket: PathBuf,
}

impl FromStr for VhostUserOption {
    type Err = DaemonOptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || DaemonOptionError::VhostUser(text.to_owned());
        let (mut socket, mut tag, mut mtu) = (None, None, None);
        let mut words = text.split(',');
        let name = words.next().unwrap_or_default();
        for word in words {
            let slot = match word.split_once('=') {
                Some(("socket", path)) if !path.is_empty() => (&mut socket, path),
                Some(("tag", name)) => (&mut tag, name),
                Some(("mtu", bytes)) => (&mut mtu, bytes),
                _ => return Err(wrong()),
            };
            *slot.0 = Some(slot.1);
        }
        let socket = socket.ok_or_else(wrong)?;
        let kind = match (name, tag, mtu) {
            ("blk", None, None) => Kind::Block,
            ("fs", Some(tag), None) => Kind::FileSystem {
                tag: checked_tag(tag)?,
            },
            ("net", None, mtu) => Kind::Network {
                mac: mac_for(socket),
                mtu: mtu.map(checked_mtu).transpose()?,
            },
            _ => return Err(wrong()),
        };
        Ok(Self {
            text: text.to_owned(),
            kind,
            socket: socket.into(),
        })
    }
}

fn checked_mtu(text: &str) -> Result<u16, DaemonOptionError> {
    let mtu = text.parse().ok().filter(|&mtu| mtu >= MTU_MIN);
    mtu.ok_or_else(|| DaemonOptionError::Mtu(text.to_owned()))
}

fn checked_tag(tag: &str) -> Result<String, DaemonOptionError> {
    let is_valid = (1..=TAG_MAX).contains(&tag.len())
        && !tag.contains(|c: char| c.is_whitespace() || c.is_control());
    match is_valid {
        true => Ok(tag.to_owned()),
        false => Err(DaemonOptionError::Tag(tag.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_file_with_a_format() {
        let disk = |text: &str| {
            let disk: DiskOption = text.parse().unwrap();
            assert_eq!(disk.text, text);
            (disk.file, disk.is_qcow2, disk.is_readonly)
        };
        assert_eq!(disk("a.img"), ("a.img".into(), false, false));
        assert_eq!(disk("/b,format=raw"), ("/b".into(), false, false));
        let all = "/dev/vg/c,readonly,format=qcow2";
        assert_eq!(disk(all), ("/dev/vg/c".into(), true, true));
    }

    #[test]
    fn what_is_no_disk_is_refused_with_the_form() {
        for (text, word) in [
            ("", "names no file"),
            (",readonly", "names no file"),
            ("a,", "`` is not an option"),
            ("a,format=vmdk", "`format=vmdk`"),
            ("a,readonly=1", "`readonly=1`"),
            ("a,b", "`b`"),
        ] {
            let error = text.parse::<DiskOption>().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
            assert!(
                error.contains("FILE[,format=raw|qcow2][,readonly]"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_share_is_a_tag_and_a_folder() {
        let share: ShareOption = "data=/srv/a=b,c".parse().unwrap();
        assert_eq!((&*share.tag, share.folder), ("data", "/srv/a=b,c".into()));
        for text in ["", "data", "data=", "/srv/data"] {
            let error = text.parse::<ShareOption>().unwrap_err();
            assert_eq!(error, DaemonOptionError::Share(text.into()));
        }
        let long = "x".repeat(TAG_MAX + 1);
        for tag in ["", "a b", "\u{7}", &long] {
            let error = format!("{tag}=/srv").parse::<ShareOption>().unwrap_err();
            assert_eq!(error, DaemonOptionError::Tag(tag.into()));
        }
    }

    #[test]
    fn a_daemon_of_the_operator_has_a_type_and_a_socket() {
        let device = |text: &str| {
            let device: VhostUserOption = text.parse().unwrap();
            (device.kind, device.socket)
        };
        assert_eq!(device("blk,socket=/s"), (Kind::Block, "/s".into()));
        let fs = Kind::FileSystem { tag: "t".into() };
        assert_eq!(device("fs,tag=t,socket=s"), (fs, "s".into()));
        let mac = mac_for("/s");
        let net = |mtu| (Kind::Network { mac, mtu }, "/s".into());
        assert_eq!(device("net,socket=/s"), net(None));
        assert_eq!(device("net,socket=/s,mtu=65520"), net(Some(65_520)));
        for text in [
            "",
            "blk",
            "blk,socket=",
            "blk,socket=/s,tag=t",
            "fs,socket=/s",
            "blk,socket=/s,mtu=1500",
            "fs,socket=/s,tag=t,mtu=1500",
            "net",
            "net,socket=/s,tag=t",
            "net,socket=/s,mac=1",
            "blk,/s",
            "blk,path=/s",
        ] {
            let error = text.parse::<VhostUserOption>().unwrap_err();
            assert_eq!(error, DaemonOptionError::VhostUser(text.into()));
        }
        for mtu in ["", "67", "65536", "x"] {
            let text = format!("net,socket=s,mtu={mtu}");
            let error = text.parse::<VhostUserOption>().unwrap_err();
            assert_eq!(error, DaemonOptionError::Mtu(mtu.into()));
        }
        let error = "fs,socket=s,tag=".parse::<VhostUserOption>().unwrap_err();
        assert_eq!(error, DaemonOptionError::Tag(String::new()));
    }
}
