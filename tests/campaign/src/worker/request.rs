//! Ordinary requests, and the effects of requests on the models.

use std::sync::atomic::Ordering::SeqCst;

use vmsrs_ledger::command::Command;
use vmsrs_ledger::model::User;
use vmsrs_ledger::reply::{Failure, Reply};
use vmsrs_ledger::users::{lock, lock_touched};

use super::{Effect, Made, Struck, Worker};
use crate::arm::{Arm, Strike};
use crate::kind;
use crate::world::Over;

impl Worker<'_> {
    /// Sends an ordinary request and compares its answer with the model's.
    pub(super) fn ordinary(&mut self, index: usize, command: Command) -> Result<(), Over> {
        self.with_users(index, command, None, |_, _, _, _| Ok(()))
            .map(drop)
    }

    /// Sends a request with its users' models locked. If the error was made, `struck` gets the answer; else it is compared
    /// with the model's. Returns whether the error was made.
    pub(super) fn with_users(
        &mut self,
        index: usize,
        mut command: Command,
        arm: Option<Arm>,
        struck: impl FnOnce(&mut Self, &mut User, Effect, Struck<'_>) -> Result<(), Over>,
    ) -> Result<Made, Over> {
        let world = self.world;
        let (mut user, mut receiver) = lock_touched(&world.users, index, &command);
        if let (Command::Transfer { name, .. }, Some(receiver)) = (&mut command, &receiver) {
            name.clone_from(&receiver.name);
        }
        // It may leave its user with wrong data, which must not hide earlier harm by others.
        let misleads = |arm: Arm| arm.is_mutation() || kind::is_untagged(arm.error);
        if arm.is_some_and(misleads) && !self.is_unharmed(&mut user)? {
            return Ok(Made::No);
        }
        self.choose(&user)?;
        let mut after = user.clone();
        let mut receiver_after = receiver.as_deref().cloned();
        let (expected, change) = after.apply(&command, receiver_after.as_mut());
        let effect = Effect {
            expected,
            change,
            user: after,
            receiver: receiver_after,
        };
        let line = command.to_string();
        let life = self.life;
        let Ok(answer) = self.ask(arm, &line)? else {
            // A damaged process cannot be trusted to read the state.
            if world.is_damaged(life) {
                self.replace(life)?;
            }
            let mutated = arm.is_some_and(|arm| arm.is_mutation());
            let parts = (&effect, &command);
            let side = self.settle(&mut user, receiver.as_deref_mut(), parts, mutated)?;
            return Ok(Made::Broken(life, side));
        };
        if let Some(strike) = answer.strike.as_ref().filter(|strike| strike.fired) {
            let parts = Struck {
                command: &command,
                strike: strike.clone(),
                line: &answer.line,
                receiver: receiver.as_deref_mut(),
            };
            let result = struck(self, &mut user, effect, parts);
            return result.map(|()| Made::Yes);
        }
        match Reply::parse(&answer.line) {
            Ok(Reply::Answer(found)) if effect.expected.matches(&found) => {
                world.add(effect.change);
                *user = effect.user;
                if let (Some(receiver), Some(after)) = (receiver.as_deref_mut(), effect.receiver) {
                    *receiver = after;
                }
            }
            Ok(Reply::Failed(failure)) => {
                if matches!(command, Command::Directory) {
                    world.add_maybe(&command);
                }
                if world.is_damaged(self.life) {
                    world.count.lost_in_damaged.fetch_add(1, SeqCst);
                } else if !is_late(arm, answer.strike.as_ref(), &failure) {
                    lock(&world.incidents).push(failure.incident);
                    world.harm(format!(
                        "{} {command}: failed as {failure:?} ({})",
                        user.name, self.connection
                    ));
                }
            }
            other => {
                world.harm(format!(
                    "{} {command}: {other:?} instead of {:?}",
                    user.name, effect.expected
                ));
                world.add_maybe(&command);
                self.retire(&mut user)?;
            }
        }
        Ok(Made::No)
    }
}

/// Whether a request that did not reach its error has failed by the deadline that it got with the error: it may have
/// waited for others. One that reached the error's place and waits for a thread that does not make it hangs.
fn is_late(arm: Option<Arm>, strike: Option<&Strike>, failure: &Failure) -> bool {
    arm.is_some_and(|arm| {
        let has_reached = strike.is_some_and(|strike| strike.passages >= arm.count);
        arm.deadline_ms > 0 && !has_reached && failure.kind == "deadline"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: &str) -> Failure {
        Failure {
            kind: kind.to_owned(),
            incident: 1,
            recovery_ns: 1,
        }
    }

    #[test]
    fn deadline_excuses_only_failures_by_it() {
        let arm = Arm {
            count: 1,
            deadline_ms: 400,
            ..Arm::SEAL
        };
        let strike = |passages| Strike {
            fired: false,
            passages,
            stopped: false,
            left: None,
        };
        assert!(is_late(Some(arm), Some(&strike(0)), &failure("deadline")));
        assert!(!is_late(Some(arm), Some(&strike(1)), &failure("deadline")));
        assert!(!is_late(Some(arm), Some(&strike(0)), &failure("memory")));
        assert!(!is_late(Some(Arm::SEAL), None, &failure("deadline")));
        assert!(!is_late(None, None, &failure("deadline")));
    }
}
