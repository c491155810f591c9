//! A backtrace with names.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vmsrs_protocol::incident::{REG_RBP, REG_RIP, REG_RSP};

use super::files::{ModuleFiles, SymbolFiles};
use super::modules::Module;
use super::unwind::{Found, Place, Program, Stack};
use crate::control::RequestFacts;

/// Functions of Rust's panic machinery and of the library's own hook, innermost in every panic.
const MACHINERY: [&str; 6] = [
    "vmsrs::thread::evidence::",
    "std::panicking::",
    "core::panicking::",
    "std::sys::backtrace::",
    "rust_begin_unwind",
    "__rustc",
];

/// Largest files with symbols, together, that are mapped for a backtrace.
const SYMBOLS_MAX: u64 = 8 << 30;

/// The files whose symbols have been asked for: each is mapped once, however many modules claim to be it.
struct Loaders {
    /// By path; `None` for one that cannot be read, or for which there was no room.
    read: HashMap<PathBuf, Option<addr2line::Loader>>,
    /// Bytes of files that may still be mapped.
    left: u64,
}

impl Loaders {
    fn new() -> Self {
        Self {
            read: HashMap::new(),
            left: SYMBOLS_MAX,
        }
    }

    fn of(&mut self, path: &Path) -> Option<&addr2line::Loader> {
        if !self.read.contains_key(path) {
            let loader = fs::metadata(path).ok().and_then(|metadata| {
                self.left = self.left.checked_sub(metadata.len())?;
                addr2line::Loader::new(path).ok()
            });
            self.read.insert(path.to_owned(), loader);
        }
        self.read.get(path)?.as_ref()
    }
}

/// One line of a backtrace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// Number of the stack frame, 0 the innermost; inlined functions share their caller's.
    pub level: usize,
    /// The instruction pointer, or the return address.
    pub address: u64,
    /// Path of the module in the guest, if the address lies in one.
    pub module: Option<String>,
    /// The address in the module's file.
    pub module_offset: Option<u64>,
    /// Name of the function, demangled.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// Column in it.
    pub column: Option<u32>,
    /// The function is part of its caller, the next line.
    pub inlined: bool,
    /// How the frame was found.
    pub found: Found,
    /// It belongs to a panic on its way, not to the code that panicked.
    pub machinery: bool,
}

/// A backtrace, and what a reader should know about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// Innermost first.
    pub frames: Vec<Frame>,
    /// What is missing or uncertain, each with the remedy, in a sentence.
    pub notes: Vec<String>,
}

/// Unwinds and names the stack of a failed request.
pub fn trace(request: &RequestFacts, files: &SymbolFiles) -> Trace {
    let register = |index: usize| request.registers.get(index).copied().unwrap_or(0);
    if request.registers.is_empty() {
        return Trace::default();
    }
    let (table, stack) = match &request.program {
        Some(program) => (&program.modules[..], &program.stack[..]),
        None => (&[][..], &[][..]),
    };
    let modules = Module::parse(table);
    let found = files.find_all(&modules);
    let program = Program::new(&modules, &found);
    let stack = Stack {
        address: request
            .program
            .as_ref()
            .map_or(0, |program| program.stack_address),
        bytes: stack,
    };
    // A panic's stack was moved; its words are those of the place where its stack pointer was.
    let stack = Stack {
        address: kept_from(request, stack, register(REG_RSP)),
        ..stack
    };
    let places = program.unwind(
        (register(REG_RIP), register(REG_RSP), register(REG_RBP)),
        stack,
        &request.backtrace,
    );
    name(&places, &modules, &found)
}

/// Where the kept bytes of stack were when the request failed. The library copies the stack of a
/// panic to the low end of the stack: it starts at the stack pointer.
fn kept_from(request: &RequestFacts, stack: Stack<'_>, rsp: u64) -> u64 {
    let Some(program) = &request.program else {
        return stack.address;
    };
    let inside = (program.stack_low..program.stack_high).contains(&rsp);
    if stack.address == program.stack_low && inside {
        rsp & !7
    } else {
        stack.address
    }
}

fn name(places: &[Place], modules: &[Module], found: &[ModuleFiles]) -> Trace {
    let mut trace = Trace::default();
    let mut loaders = Loaders::new();
    let mut without = BTreeSet::new();
    let mut by_name = BTreeSet::new();
    let mut beyond = false;
    for (level, place) in places.iter().enumerate() {
        let at = place.lookup();
        let index = modules
            .iter()
            .position(|module| (module.start..module.end).contains(&at));
        let Some(index) = index else {
            beyond |= level > 0 || modules.is_empty();
            trace.frames.push(bare(level, *place, None));
            continue;
        };
        let module = &modules[index];
        let loader = found[index]
            .symbols
            .as_deref()
            .and_then(|path| loaders.of(path));
        let Some(loader) = loader else {
            without.insert(describe(module));
            trace.frames.push(bare(level, *place, Some(module)));
            continue;
        };
        if found[index].by_name {
            by_name.insert(module.name().to_owned());
        }
        add_named(&mut trace.frames, loader, module, level, *place);
    }
    mark_machinery(&mut trace.frames);
    if !without.is_empty() {
        let list: Vec<_> = without.into_iter().collect();
        trace.notes.push(format!(
            "no file for {}: give the folder that has it, with symbols, as --symbols FOLDER",
            list.join(", ")
        ));
    }
    if !by_name.is_empty() {
        let list: Vec<_> = by_name.into_iter().collect();
        trace.notes.push(format!(
            "{} found by name: link with --build-id to be sure that it is the version that failed",
            list.join(", ")
        ));
    }
    if beyond {
        trace.notes.push(
            "some addresses lie in no module: it was loaded after the app was opened, by a thread \
             that had run requests before"
                .to_owned(),
        );
    }
    if trace.frames.iter().any(|frame| frame.found == Found::Scan) {
        trace.notes.push(
            "frames marked with ? were found by looking through the stack: they may be left over \
             from earlier calls"
                .to_owned(),
        );
    }
    trace
}

/// A module for a message, with what identifies it.
fn describe(module: &Module) -> String {
    let id: String = module
        .build_id
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    match id.is_empty() {
        true => module.name().to_owned(),
        false => format!("{} (build ID {id})", module.name()),
    }
}

fn bare(level: usize, place: Place, module: Option<&Module>) -> Frame {
    Frame {
        level,
        address: place.address,
        module: module.map(|module| module.path.clone()),
        module_offset: module.map(|module| place.address.wrapping_sub(module.bias)),
        function: None,
        file: None,
        line: None,
        column: None,
        inlined: false,
        found: place.found,
        machinery: false,
    }
}

/// Adds a frame with the functions that were inlined at its address.
fn add_named(
    frames: &mut Vec<Frame>,
    loader: &addr2line::Loader,
    module: &Module,
    level: usize,
    place: Place,
) {
    let base = bare(level, place, Some(module));
    let probe = place.lookup().wrapping_sub(module.bias);
    let first = frames.len();
    if let Ok(mut iterator) = loader.find_frames(probe) {
        while let Ok(Some(found)) = iterator.next() {
            let function = found
                .function
                .as_ref()
                .and_then(|function| function.demangle().ok().map(Cow::into_owned));
            let location = found.location;
            frames.push(Frame {
                function,
                file: location
                    .as_ref()
                    .and_then(|location| location.file.map(str::to_owned)),
                line: location.as_ref().and_then(|location| location.line),
                column: location.as_ref().and_then(|location| location.column),
                inlined: true,
                ..base.clone()
            });
        }
    }
    match frames[first..].last_mut() {
        None => frames.push(base),
        Some(outermost) => outermost.inlined = false,
    }
    // Tables of lines alone have names without their modules or classes; the symbol has them.
    if let Some(outermost) = frames.last_mut()
        && let Some(symbol) = loader.find_symbol(probe)
    {
        let symbol = addr2line::demangle_auto(Cow::from(symbol), None);
        let named = outermost.function.as_deref();
        if named.is_none_or(|name| !name.contains("::") && symbol.contains("::")) {
            outermost.function = Some(symbol.into_owned());
        }
    }
}

/// Marks the innermost frames of a panic, up to the code that panicked.
fn mark_machinery(frames: &mut [Frame]) {
    let is_machinery = |frame: &Frame| {
        let function = frame.function.as_deref().unwrap_or_default();
        MACHINERY.iter().any(|part| function.contains(part))
    };
    let ours = |frame: &Frame| {
        let function = frame.function.as_deref().unwrap_or_default();
        function.contains("vmsrs::thread::evidence::")
    };
    if !frames.first().is_some_and(ours) {
        return;
    }
    // The request's entry catches panics with the same machinery, at the outer end: only what lies
    // before it counts.
    let entry = frames.iter().position(|frame| {
        let function = frame.function.as_deref().unwrap_or_default();
        function.contains("catch_unwind") || function.contains("panicking::try")
    });
    let inner = &frames[..entry.unwrap_or(frames.len())];
    let end = inner.iter().rposition(is_machinery);
    for frame in frames.iter_mut().take(end.map_or(0, |end| end + 1)) {
        frame.machinery = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_mapped_once_and_all_files_have_a_bound_together() {
        let own = std::env::current_exe().unwrap();
        let mut loaders = Loaders::new();
        assert!(loaders.of(&own).is_some());
        let left = loaders.left;
        assert!(left < SYMBOLS_MAX);
        assert!(loaders.of(&own).is_some());
        assert_eq!(loaders.left, left);
        let mut full = Loaders::new();
        full.left = SYMBOLS_MAX - left - 1;
        assert!(full.of(&own).is_none());
    }
}
