//! Runs a job on this machine, with its own KVM.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::accelerator::Accelerator;
use crate::error::{IoContext, Result};
use crate::job::{Event, Job, Outcome};
use crate::project;
use crate::stream::{self, EXIT_MARK};

/// Runs the job in the folder given as its first argument, then removes the folder and kills its process group (see
/// [`stream::run`]); also on SIGTERM, which it gets when its parent dies.
const SUPERVISOR: &str = r#"
trap 'rm -rf "$1"; kill -KILL 0' TERM INT HUP
exec 3>&1 1>&2 </dev/null
cd "$1" || exit 125
VMSRS_RESULTS=/proc/$$/fd/3 sh ./.run &
wait $!
code=$?
cd /
rm -rf "$1"
echo "@exit $code" >&3
kill -KILL 0
"#;

/// Stages the job's files in a folder, runs it there and waits for its end.
pub(crate) fn run(job: &Job, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Outcome> {
    debug_assert!(SUPERVISOR.contains(EXIT_MARK));
    let base = project::build();
    fs::create_dir_all(&base).context("create", &base)?;
    let folder = tempfile::Builder::new()
        .prefix("job-")
        .tempdir_in(&base)
        .context("create a folder in", &base)?;
    stage(job, folder.path())?;
    stream::run(
        supervised(job, folder.path()),
        job.limit(),
        on_event,
        &String::new,
    )
}

fn stage(job: &Job, folder: &Path) -> Result<()> {
    for file in &job.files {
        let target = folder.join(&file.name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).context("create", parent)?;
        }
        fs::copy(&file.source, &target).context("copy", &file.source)?;
        if file.program {
            let permissions = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&target, permissions).context("set the permissions of", &target)?;
        }
    }
    let script = folder.join(".run");
    fs::write(&script, job.run_script(Accelerator::Direct.name())).context("write", &script)
}

fn supervised(job: &Job, folder: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "sh", "-c", SUPERVISOR, "sh"])
        .arg(folder);
    if !job.library_folders.is_empty() {
        let joined: Vec<_> = job
            .library_folders
            .iter()
            .map(|folder| folder.to_string_lossy())
            .collect();
        command.env("LD_LIBRARY_PATH", joined.join(":"));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::path::PathBuf;
    use std::time::Duration;

    #[test]
    fn a_job_runs_in_its_folder_and_leaves_nothing() {
        let program = std::env::current_exe().unwrap();
        let job = Job::script(
            r#"test -x bin/me && echo "$PWD" >>"$VMSRS_RESULTS"; sleep 600 & echo $! >>"$VMSRS_RESULTS"; exit 3"#,
        )
        .program(program, "bin/me");
        let outcome = run(&job, &mut |_| ()).unwrap();
        assert_eq!(outcome.code, 3);
        let [folder, process] = &outcome.results[..] else {
            panic!("{outcome:?}");
        };
        assert!(!Path::new(folder).exists());
        wait_for_end(process);
    }

    #[test]
    fn a_job_that_hangs_is_killed_with_all_it_started() {
        let script = r#"sleep 600 & echo $! $PWD >&2; echo @start >>"$VMSRS_RESULTS"; wait"#;
        let job = Job::script(script).timeout(Duration::from_secs(5));
        let error = run(&job, &mut |_| ()).unwrap_err();
        let Error::Timeout { console, .. } = error else {
            panic!("{error}");
        };
        let (process, folder) = console.split_once(' ').unwrap();
        wait_for_end(process);
        assert!(!Path::new(folder).exists());
    }

    /// Waits until a process has ended; a zombie has.
    fn wait_for_end(process: &str) {
        let status = PathBuf::from("/proc").join(process).join("status");
        loop {
            let status = fs::read_to_string(&status).unwrap_or_default();
            if status.is_empty() || status.contains("State:\tZ") {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
