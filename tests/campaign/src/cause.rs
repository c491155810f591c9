//! Why a process of the server ended, judged by evidence instead of by what happened to be in progress.

use crate::console::End;
use crate::kind::Fate;
use crate::life::Life;

/// Exit code of a process that SIGKILL has ended.
const KILLED: i32 = 137;

/// Why a process of the server ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// By the planned SIGKILL.
    Killed,
    /// By damage outside of domains.
    Untagged,
    /// By the supervisor, because memory outside of domains had been damaged.
    Replaced,
    /// With its guest, by the planned panic.
    Panic,
    /// By nothing that was planned; the evidence in words.
    Crash(String),
}

/// What is known about the end of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Evidence<'a> {
    /// Whether its guest went on.
    pub(crate) same_boot: bool,
    /// Whether there is a supervisor.
    pub(crate) supervised: bool,
    /// The supervisor's record of it.
    pub(crate) end: Option<&'a End>,
}

/// Why `life` ended.
pub(crate) fn cause(life: &Life, evidence: Evidence<'_>) -> Cause {
    let fate = life.ending.map(|kind| kind.fate);
    let code = evidence.end.map(|end| end.code);
    let crash = |what: &str| {
        let code = code.map_or_else(|| "unknown".to_owned(), |code| code.to_string());
        let planned = life.ending.map_or("nothing", |kind| kind.name);
        let before = evidence.end.map_or("", |end| &end.before);
        Cause::Crash(format!(
            "process {} {what}, exit code {code}; planned: {planned}; the console before: {before:?}",
            life.pid
        ))
    };
    let with_guest = !evidence.same_boot && code.is_none();
    if with_guest {
        return match fate {
            Some(Fate::Panics) => Cause::Panic,
            _ => crash("went down with its guest"),
        };
    }
    if evidence.supervised && code.is_none() {
        return crash("ended, and the supervisor has no record of it");
    }
    let by_kill = code.is_none_or(|code| code == KILLED);
    match fate {
        _ if life.replaced && by_kill => Cause::Replaced,
        _ if life.damaged => Cause::Untagged,
        Some(Fate::Untagged) => Cause::Untagged,
        Some(Fate::Kills) if by_kill => Cause::Killed,
        _ => crash("ended"),
    }
}

/// Restarts of a life that its end does not explain, and an end without a restart of an error, in words. `cause` is why
/// it ended, or `None` if it is still running.
pub(crate) fn unexplained(life: &Life, cause: Option<&Cause>) -> Vec<String> {
    let explains = |fate| match cause {
        Some(Cause::Killed) => fate == Fate::Kills,
        Some(Cause::Panic) => fate == Fate::Panics,
        Some(Cause::Untagged | Cause::Replaced) => fate == Fate::Untagged,
        Some(Cause::Crash(_)) | None => false,
    };
    let mut trouble = Vec::new();
    for (number, kind) in life.restarted.iter().enumerate() {
        if number > 0 || !explains(kind.fate) {
            trouble.push(format!(
                "{} cost process {} its clients, which ended by {cause:?}",
                kind.name, life.pid
            ));
        }
    }
    let must_have = matches!(cause, Some(Cause::Killed | Cause::Panic));
    if must_have && life.restarted.is_empty() {
        trouble.push(format!(
            "process {} ended by {cause:?}, and no error's request was lost with it",
            life.pid
        ));
    }
    trouble
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{Kind, all};

    fn life(fate: Option<Fate>) -> Life {
        let kind = |fate| all().find(|kind: &&'static Kind| kind.fate == fate);
        Life {
            ending: fate.and_then(kind),
            ..Life::new("b".to_owned(), 7)
        }
    }

    fn ended(life: &Life, code: i32) -> Cause {
        let end = End {
            boot: "b".to_owned(),
            pid: 7,
            code,
            before: String::new(),
        };
        let evidence = Evidence {
            same_boot: true,
            supervised: true,
            end: Some(&end),
        };
        cause(life, evidence)
    }

    fn is_crash(cause: &Cause) -> bool {
        matches!(cause, Cause::Crash(_))
    }

    #[test]
    fn unexplained_end_is_a_crash() {
        assert!(is_crash(&ended(&life(None), 139)));
        assert!(is_crash(&ended(&life(None), 137)));
    }

    #[test]
    fn each_restart_matches_one_end_with_its_cause() {
        let mut life = life(Some(Fate::Kills));
        let is_explained = |life: &Life, cause: Option<&Cause>| unexplained(life, cause).is_empty();
        assert!(is_explained(&life, None));
        assert!(!is_explained(&life, Some(&Cause::Killed)));
        life.restarted.extend(life.ending);
        assert!(is_explained(&life, Some(&Cause::Killed)));
        assert!(!is_explained(&life, Some(&Cause::Panic)));
        assert!(!is_explained(&life, Some(&Cause::Crash(String::new()))));
        // The connection broke, and the process lives on.
        assert!(!is_explained(&life, None));
        life.restarted.extend(life.ending);
        assert!(!is_explained(&life, Some(&Cause::Killed)));
    }

    #[test]
    fn damaged_process_may_die_or_be_replaced() {
        let mut life = life(Some(Fate::Untagged));
        life.restarted.extend(life.ending);
        assert_eq!(unexplained(&life, Some(&Cause::Untagged)), [""; 0]);
        assert_eq!(unexplained(&life, Some(&Cause::Replaced)), [""; 0]);
        assert_eq!(unexplained(&life, Some(&Cause::Killed)).len(), 1);
        // One whose request was answered, and which was ended afterwards.
        life.restarted.clear();
        assert_eq!(unexplained(&life, Some(&Cause::Replaced)), [""; 0]);
    }

    #[test]
    fn a_planned_kill_excuses_no_other_signal() {
        assert_eq!(ended(&life(Some(Fate::Kills)), 137), Cause::Killed);
        assert!(is_crash(&ended(&life(Some(Fate::Kills)), 139)));
    }

    #[test]
    fn planned_panic_excuses_no_process_death_without_it() {
        let life = life(Some(Fate::Panics));
        assert!(is_crash(&ended(&life, 139)));
        let gone = Evidence {
            same_boot: false,
            supervised: true,
            end: None,
        };
        assert_eq!(cause(&life, gone), Cause::Panic);
        let planned_kill = self::life(Some(Fate::Kills));
        assert!(is_crash(&cause(&planned_kill, gone)));
    }

    #[test]
    fn kill_of_a_damaged_server_is_a_replacement() {
        let mut life = life(Some(Fate::Untagged));
        assert_eq!(ended(&life, 139), Cause::Untagged);
        life.damaged = true;
        life.replaced = true;
        assert_eq!(ended(&life, 137), Cause::Replaced);
        // It had died by itself just before.
        assert_eq!(ended(&life, 139), Cause::Untagged);
    }

    #[test]
    fn end_unknown_to_the_supervisor_is_a_crash() {
        let life = life(Some(Fate::Kills));
        let mut evidence = Evidence {
            same_boot: true,
            supervised: true,
            end: None,
        };
        assert!(is_crash(&cause(&life, evidence)));
        evidence.supervised = false;
        assert_eq!(cause(&life, evidence), Cause::Killed);
    }
}
