//! QEMU's monitor: where the emulated CPUs are, for a job that does not end.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::error::{IoContext, Result};

/// What the monitor prints when it waits for a command.
const PROMPT: &[u8] = b"(qemu) ";

/// How long an answer may take; a QEMU that does not answer is told as such.
const LIMIT: Duration = Duration::from_secs(10);

/// Looks at each CPU, and the time between two of them: a CPU that moves is not stuck at one instruction.
const LOOKS: usize = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// Words of the stack that are looked at, and how many of them that may be return addresses are told.
const STACK_WORDS: usize = 128;
const CALLERS: usize = 12;

/// Where Linux has its code and its modules.
const KERNEL_CODE: u64 = 0xffff_ffff_8000_0000;

/// A guest's kernel is booted by PVH, which moves neither its code nor its direct map of memory; that of the KVM host is
/// moved at each boot. The data of a CPU is in the direct map, with four and with five levels of page tables.
const GUEST_MAPS: [u64; 2] = [0xffff_8880_0000_0000, 0xff11_0000_0000_0000];
const GUEST_MAP_LENGTH: u64 = 1 << 36;

/// A monitor on a socket, which is gone with this.
pub(crate) struct Monitor {
    folder: TempDir,
}

/// A CPU.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cpu {
    rip: u64,
    cpl: u32,
    halted: bool,
    gs: u64,
    cr3: u64,
}

impl Monitor {
    /// # Errors
    ///
    /// When no folder for the socket can be created.
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::tempdir();
        let folder = folder.context("create a folder in", &std::env::temp_dir())?;
        Ok(Self { folder })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("monitor")
    }

    /// Has QEMU offer it.
    pub(crate) fn add_to(&self, qemu: &mut Command) {
        let socket = self.socket();
        qemu.arg("-chardev").arg(format!(
            "socket,id=monitor,server=on,wait=off,path={}",
            socket.display()
        ));
        qemu.args(["-mon", "chardev=monitor,mode=readline"]);
    }

    /// Where the CPUs are, a few lines for each; or why that is not known.
    pub(crate) fn positions(&self) -> String {
        looks(&self.socket()).unwrap_or_else(|error| {
            format!("QEMU's monitor does not say where its CPUs are: {error}")
        })
    }
}

fn looks(socket: &Path) -> io::Result<String> {
    let mut monitor = UnixStream::connect(socket)?;
    monitor.set_read_timeout(Some(LIMIT))?;
    monitor.set_write_timeout(Some(LIMIT))?;
    answer(&mut monitor)?;
    let mut told: Vec<String> = Vec::new();
    for look in 0..LOOKS {
        if look != 0 {
            thread::sleep(PAUSE);
        }
        let text = ask(&mut monitor, "info registers -a")?;
        for (number, cpu) in cpus(&text).iter().enumerate() {
            if told.len() == number {
                told.push(format!("CPU {number}:"));
            }
            told[number] += &format!("\n  {}", cpu.tell());
            if look + 1 == LOOKS && cpu.cpl == 0 {
                ask(&mut monitor, &format!("cpu {number}"))?;
                let stack = ask(&mut monitor, &format!("x /{STACK_WORDS}gx $rsp"))?;
                told[number] += &format!("\n  on its stack:{}", callers(&stack));
            }
        }
    }
    Ok(told.join("\n"))
}

fn ask(monitor: &mut UnixStream, command: &str) -> io::Result<String> {
    monitor.write_all(format!("{command}\n").as_bytes())?;
    answer(monitor)
}

/// What comes up to the next prompt. The monitor repeats a command letter by letter, without the prompt.
fn answer(monitor: &mut UnixStream) -> io::Result<String> {
    let mut text = Vec::new();
    let mut bytes = [0; 4096];
    while !text.ends_with(PROMPT) {
        match monitor.read(&mut bytes)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => text.extend_from_slice(&bytes[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The CPUs in the answer to `info registers -a`.
fn cpus(text: &str) -> Vec<Cpu> {
    let mut cpus: Vec<Cpu> = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("CPU#") {
            cpus.push(Cpu::default());
        }
        let Some(cpu) = cpus.last_mut() else { continue };
        if let Some(rest) = line.strip_prefix("GS =") {
            cpu.gs = rest.split_whitespace().nth(1).and_then(hex).unwrap_or(0);
        }
        for word in line.split_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            match name {
                "RIP" | "EIP" => cpu.rip = hex(value).unwrap_or(0),
                "CPL" => cpu.cpl = value.parse().unwrap_or(0),
                "HLT" => cpu.halted = value == "1",
                "CR3" => cpu.cr3 = hex(value).unwrap_or(0),
                _ => {}
            }
        }
    }
    cpus
}

impl Cpu {
    fn tell(&self) -> String {
        let is_guests = |&start: &u64| (start..start + GUEST_MAP_LENGTH).contains(&self.gs);
        let who = match (self.cpl, self.rip >= KERNEL_CODE) {
            (0, true) if GUEST_MAPS.iter().any(is_guests) => "a guest's kernel",
            (0, true) => "the KVM host's kernel",
            (0, false) => "firmware or a loader",
            _ => "a program",
        };
        format!(
            "RIP {:#x}, CPL {}, CR3 {:#x}, GS {:#x}, {who}{}",
            self.rip,
            self.cpl,
            self.cr3,
            self.gs,
            if self.halted { ", halted" } else { "" }
        )
    }
}

/// Words of a stack that point to a kernel's code.
fn callers(stack: &str) -> String {
    let words = stack
        .split_whitespace()
        .filter_map(|word| hex(word.strip_prefix("0x")?));
    let code = words.filter(|word| (KERNEL_CODE..u64::MAX - 0xffff).contains(word));
    code.take(CALLERS)
        .map(|word| format!(" {word:#x}"))
        .collect()
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 10 prints it, with registers left out.
    const REGISTERS: &str = "info registers -a\r\n\r\nCPU#0\r\n\
        RAX=0000000000000000 RBX=0000000000000001 RCX=0000000000000000 RDX=0000000000000000\r\n\
        RIP=ffffffff81a3e0cb RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n\
        GS =0000 ffff88801f200000 00000000 00000000\r\n\
        CR0=80050033 CR2=00007f1 CR3=000000000a0e CR4=00750ef0\r\n\r\n\
        CPU#1\r\n\
        RIP=00005581a0001234 RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0\r\n\
        GS =0000 0000000000000000 00000000 00000000\r\n(qemu) ";

    #[test]
    fn positions_are_read_from_registers() {
        let cpus = cpus(REGISTERS);
        assert_eq!(cpus.len(), 2);
        assert_eq!(
            cpus[0],
            Cpu {
                rip: 0xffff_ffff_81a3_e0cb,
                cpl: 0,
                halted: true,
                gs: 0xffff_8880_1f20_0000,
                cr3: 0xa0e,
            }
        );
        assert!(cpus[0].tell().ends_with("a guest's kernel, halted"));
        assert!(cpus[1].tell().ends_with("a program"));
    }

    #[test]
    fn code_is_found_on_a_stack() {
        let stack = "ffffc900: 0xffffffff81001234 0x0000000000000001\r\n\
                     ffffc910: 0xffffffffffffffff 0xffffffffc0401234\r\n(qemu) ";
        assert_eq!(callers(stack), " 0xffffffff81001234 0xffffffffc0401234");
    }
}
