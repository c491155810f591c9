//! The command line of the test-bed.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use vmsrs_bed::{Accelerator, Bed, Cache, Event, Flavour, Job, Release, Series, project, tools};

/// Debian kernels and a KVM host to run them on, on any machine.
#[derive(Parser)]
#[command(name = "bed", version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Fetch Debian's kernels, QEMU and busybox into the cache, and install missing tools.
    Fetch {
        /// Fetch the current versions of everything.
        #[arg(long)]
        update: bool,
    },
    /// Build the debug kernel (KASAN, lockdep, ...) into the cache, and the driver for it.
    DebugKernel,
    /// Build the driver and the test modules with warnings as errors, and check them with sparse.
    Kmod {
        /// The kernel to build for: 6.1, 6.12, 7 or debug; the three series by default.
        #[arg(long = "kernel", value_name = "KERNEL")]
        kernels: Vec<Flavour>,
    },
    /// Show how guests are run here, and the kernels.
    Info,
    /// Run a command on the KVM host; its console goes to standard error, its results to standard output.
    #[command(
        after_help = "Example:\n  bed run --program target/release/vmsrs=vmsrs -- vmsrs doctor"
    )]
    Run(Run),
}

#[derive(clap::Args)]
struct Run {
    /// Put a program and its shared libraries into the job folder.
    #[arg(long, value_name = "PATH=NAME", value_parser = pair)]
    program: Vec<(String, String)>,
    /// Put a file into the job folder.
    #[arg(long, value_name = "PATH=NAME", value_parser = pair)]
    file: Vec<(String, String)>,
    /// Set an environment variable.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Kill it after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300,
        value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Memory of the nested KVM host in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    memory: u32,
    /// CPUs of the nested KVM host.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// One CPU whose clock counts instructions, one per nanosecond.
    #[arg(long)]
    deterministic: bool,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Action::Fetch { update } => fetch(update),
        Action::Kmod { kernels } => kmod(kernels),
        Action::DebugKernel => debug_kernel(),
        Action::Info => info(),
        Action::Run(arguments) => run(arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("bed: {error:#}");
        // As env(1) and others do for their own errors: the command's exit codes are below.
        ExitCode::from(125)
    })
}

fn progress(message: &str) {
    eprintln!("bed: {message}");
}

fn fetch(update: bool) -> anyhow::Result<ExitCode> {
    Release::of_machine()?;
    // Every target of make that boots a guest fetches first: a misspelt name is told before the long build.
    Flavour::chosen()?;
    let mut needed = [tools::UNPACK, tools::TESTS].concat();
    if Accelerator::choose()? == Accelerator::Nested {
        needed.extend_from_slice(tools::NESTED);
    }
    tools::ensure(&needed, &progress)?;
    let cache = Cache::fetch(&project::cache(), update, &progress)?;
    let mut needed = Vec::new();
    for series in Series::ALL {
        needed.extend(cache.kernel(series)?.tools()?);
    }
    tools::ensure(&needed, &progress)?;
    Ok(ExitCode::SUCCESS)
}

fn kmod(mut kernels: Vec<Flavour>) -> anyhow::Result<ExitCode> {
    if kernels.is_empty() {
        kernels.extend(Series::ALL.map(Flavour::Stock));
    }
    let bed = Bed::auto()?;
    for kernel in kernels {
        kmod_for(&bed, kernel)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn debug_kernel() -> anyhow::Result<ExitCode> {
    kmod_for(&Bed::auto()?, Flavour::Debug)
}

fn kmod_for(bed: &Bed, flavour: Flavour) -> anyhow::Result<ExitCode> {
    let modules = bed.modules(&bed.guest_kernel(flavour)?)?;
    for module in [modules.driver, modules.test, modules.hostile] {
        println!("{}", module.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn info() -> anyhow::Result<ExitCode> {
    let bed = Bed::auto()?;
    println!("accelerator: {}", bed.accelerator().name());
    if let Err(reason) = vmsrs_bed::direct_kvm("/sys".as_ref(), "/dev".as_ref()) {
        println!("  why not this machine's own KVM: {reason}");
    }
    for series in Series::ALL {
        println!("kernel {series}: {}", bed.kernel(series)?.release());
    }
    Ok(ExitCode::SUCCESS)
}

fn run(arguments: Run) -> anyhow::Result<ExitCode> {
    let bed = Bed::auto()?;
    let mut job = Job::new(arguments.command)
        .timeout(Duration::from_secs(arguments.timeout))
        .memory_mib(arguments.memory)
        .cpus(arguments.cpus);
    for (path, name) in arguments.program {
        job = job.program(path, name);
    }
    for (path, name) in arguments.file {
        job = job.file(path, name);
    }
    for (name, value) in arguments.env {
        job = job.env(name, value);
    }
    if arguments.deterministic {
        job = job.deterministic();
    }
    let outcome = bed.run(&job, |event| match event {
        Event::Console(line) => eprintln!("{line}"),
        Event::Result(line) => println!("{line}"),
    })?;
    Ok(ExitCode::from(
        u8::try_from(outcome.code).unwrap_or(u8::MAX),
    ))
}

/// Splits `a=b`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((left, right)) if !left.is_empty() => Ok((left.to_owned(), right.to_owned())),
        _ => Err(format!("{text:?} has no `=` between two parts")),
    }
}
