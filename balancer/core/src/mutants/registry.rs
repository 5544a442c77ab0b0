//! Every planted bug.

use std::cell::Cell;

macro_rules! mutants {
    ($($name:ident, $invariant:literal, $what:literal;)*) => {
        /// One planted bug.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mutant {
            $(
                #[doc = $what]
                $name,
            )*
        }

        impl Mutant {
            /// All of them, by the invariant that they are meant to break.
            pub const ALL: &[Mutant] = &[$(Mutant::$name),*];

            /// Its name, as it stands at its place.
            pub fn name(self) -> &'static str {
                match self {
                    $(Mutant::$name => stringify!($name),)*
                }
            }

            /// The invariant that it is meant to break: `I1` to `I11`. Another may show it first.
            pub fn invariant(self) -> &'static str {
                match self {
                    $(Mutant::$name => $invariant,)*
                }
            }

            /// What is wrong.
            pub fn what(self) -> &'static str {
                match self {
                    $(Mutant::$name => $what,)*
                }
            }
        }
    };
}

mutants! {
    DeadlineFromAnswer, "I1", "the leader's deadline counts from the keep-alive's answer, not from its sending";
    SafetyMarginForgotten, "I1", "the leader commands for the lease's whole time";
    DeadlineDoubled, "I1", "the leader commands for twice the lease's time";
    DeadlineIgnored, "I1", "commands go out although the deadline has passed or the lead is frozen";
    FrozenLeaderSends, "I1", "what a leader may not send now goes out all the same";
    RevokeOnSilence, "I1", "a leader that is only silent loses its lease to a standby";
    CampaignOverLeader, "I1", "a campaign replaces a leader's key that is there";
    TermNotPersisted, "I2", "an agent acts on a higher term without writing it down";
    StaleTermObeyed, "I2", "an agent carries out a command of a term that is over";
    TermFollowsCommands, "I2", "an agent takes whatever term a command has for the highest";
    PlanWriteDropsTerm, "I2", "the ledger's new plan is written without the term (modelled shell)";
    TermKeptDespiteFullDisk, "I2", "an agent goes on as if a full disk had taken the term";
    CommitWithoutHeadExpectation, "I3", "a commit does not ask for the head that it replaces";
    CommitUnfenced, "I3", "a commit does not name its term";
    CommitExpectsNothing, "I3", "a commit expects neither its term nor the head";
    HeadNotAdvanced, "I3", "a committed plan does not become the head in the leader's mind";
    RecoveredHeadIsParent, "I3", "a new leader takes the plan before the head for the head";
    LostNumbersUsedAgain, "I3", "after a restore the numbers of lost plans are used again";
    LostEpochForgotten, "I3", "a new leader forgets up to which epoch a restored store has lost plans";
    CommitBeforeLastPrepared, "I4", "the store is asked while one node is still staging";
    CommitBeforeStored, "I4", "COMMIT is sent before the store has the plan";
    UnknownTakenForLost, "I4", "a write whose outcome is unknown is taken for not made";
    RefusedTakenForMade, "I4", "a write that the store refused is taken for made";
    AnswerOfGivenUpCounts, "I4", "a late PREPARED of an attempt that was given up counts for the next";
    AnswerOfAnyPlanCounts, "I4", "a node's PREPARED counts whatever plan it is about";
    TablesFlipWithinStep, "I4", "tables are replaced within a step (modelled worker)";
    BootWithoutHead, "I4", "a node without weights boots with the trivial plan, not with the head";
    ProposeWhileBehind, "I5", "a plan is staged while a node still serves the one before the last";
    StagedBytesNotVerified, "I5", "staged bytes are not compared with their fingerprint (modelled shell)";
    StagingStopsEarly, "I5", "staging leaves out its last move (modelled shell)";
    ReleasedSlotsCleared, "I5", "slots that a plan gives up are emptied at the flip (modelled worker)";
    FlipWhileStaging, "I5", "COMMIT flips to a plan that is not staged as a whole";
    StagedAgain, "I5", "verified bytes are staged over when a plan is prepared again (modelled shell)";
    ArmOutlivesAgent, "I5", "tables that a dead agent has armed go into service under the next one";
    PreparedBeforePersisted, "I5", "PREPARED is said before what is staged is on disk";
    PlanBeforeForgotten, "I5", "the ledger forgets the plan before, which other nodes serve still";
    LedgerFileNotSynced, "I6", "the ledger's file is not synced before it is renamed (modelled shell)";
    LedgerFolderNotSynced, "I6", "the ledger's folder is not synced after the rename (modelled shell)";
    LedgerWrittenInPlace, "I6", "the ledger is overwritten, not replaced (modelled shell)";
    AppliedBeforePersisted, "I6", "APPLIED is said before the plan is on disk";
    AppliedDespiteFullDisk, "I6", "APPLIED is said although the disk did not take the plan";
    HeadBeforeChunks, "I6", "the head is written before the chunks of its content";
    ManifestForgotten, "I6", "the head is written without its manifest";
    RequestNotStored, "I7", "an order is carried out without its request id being stored";
    RequestNeverLookedAt, "I7", "an order is carried out without looking whether it was before";
    AnsweredBeforeStored, "I7", "an operator is told that it is done before the store has it";
    RollbackForgetsRequest, "I7", "a rollback is committed without its request id";
    UnknownOrderTakenForDone, "I7", "an order whose outcome is unknown is taken for done";
    DoneOrderStaysQueued, "I8", "an order that is done stays at the head of the queue";
    FailedReadForgotten, "I8", "the leader's key is not read again after a read that failed";
    RollForwardForgotten, "I8", "a node that is behind is not rolled forward";
    ReturnWaitedForEver, "I8", "a new leader waits for its nodes for ever";
    ThawForgotten, "I8", "a leader that froze stays frozen";
    LeaseNotRenewed, "I8", "after a reign no other lease is asked for";
    StoreNotAskedAgain, "I8", "a store that was away is not asked again";
    AbortIgnored, "I8", "an agent says ABORTED and keeps what it has staged";
    StreamsKept, "I9", "a balancer does not forget streams that have ended";
    AgentStreamsKept, "I9", "an agent does not forget streams that have ended";
    CallsKept, "I9", "a leader does not forget calls that were answered";
    OperatorsForgotten, "I9", "operators whose orders fail are never answered";
    RebootOnWelcome, "I10", "a node that serves boots again when it is welcomed";
    RebootOnNewTerm, "I10", "a node boots again when a new term begins";
    BootWaitsForBalancer, "I10", "a node with a last good plan waits for a balancer (modelled shell)";
    StepsWaitForStaging, "I10", "the workers make no step while weights are staged (modelled worker)";
    StepsWaitForCommit, "I10", "the workers make no step from PREPARED to COMMIT (modelled worker)";
    CommitWithoutAudit, "I11", "a plan is committed without an audit entry";
    RollbackWithoutAudit, "I11", "a step of a rollback is committed without an audit entry";
    BootWithoutAudit, "I11", "a unit's first plan is committed without an audit entry";
    AuditNamesNoPlan, "I11", "the audit entry of a commit does not name the plan";
}

thread_local! {
    static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Switches one bug on for this thread, and any other off.
pub fn switch(mutant: Option<Mutant>) {
    ON.set(mutant);
}

/// Whether this bug is switched on for this thread.
pub fn is_on(mutant: Mutant) -> bool {
    ON.get() == Some(mutant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_invariant_has_three_bugs_at_least() {
        let mut count: BTreeMap<&str, usize> = BTreeMap::new();
        for mutant in Mutant::ALL {
            *count.entry(mutant.invariant()).or_default() += 1;
        }
        assert_eq!(count.len(), 11);
        assert!(count.values().all(|count| *count >= 3), "{count:?}");
        assert!(Mutant::ALL.len() >= 50);
    }

    #[test]
    fn one_bug_is_on_at_a_time() {
        assert!(!crate::planted!(TermNotPersisted));
        switch(Some(Mutant::TermNotPersisted));
        assert!(crate::planted!(TermNotPersisted) && !crate::planted!(StaleTermObeyed));
        switch(None);
        assert!(!crate::planted!(TermNotPersisted));
    }
}
