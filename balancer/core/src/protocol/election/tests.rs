use super::*;
use crate::records::{Change, Expect, Key, Record};

const TTL: u64 = Settings::TTL_MS;
const COMMANDS: u64 = Settings::TTL_MS - Settings::SAFETY_MS;
const OWN: LeaseId = LeaseId(1);
const OTHER: LeaseId = LeaseId(77);

fn at(ms: u64) -> Millis {
    Millis(ms)
}

fn term(revision: u64) -> Term {
    Term { generation: 0, revision }
}

fn record(name: &str, lease: LeaseId) -> LeaderRecord {
    LeaderRecord { balancer: name.into(), address: format!("{name}:7400"), lease }
}

fn holder(name: &str, lease: LeaseId, created: u64) -> Option<Holder> {
    Some(Holder { record: record(name, lease), created: Revision(created) })
}

fn other(created: u64) -> Option<Holder> {
    holder("b", OTHER, created)
}

fn found(revision: u64, holder: Option<Holder>) -> Event {
    Event::Found(Found { revision: Revision(revision), holder, generation: Generation::default() })
}

fn told(revision: u64, holder: Option<Holder>) -> Event {
    Event::LeaderTold { revision: Revision(revision), holder }
}

fn granted(lease: LeaseId, ms: u64) -> Event {
    Event::Granted { lease, sent_at: at(ms) }
}

fn kept(ms: u64) -> Event {
    Event::KeptAlive { lease: OWN, sent_at: at(ms) }
}

fn done(revision: u64) -> Event {
    Event::CampaignAnswered(Answer::Done(Revision(revision)))
}

fn campaign_of(lease: LeaseId) -> Action {
    Action::Campaign(records::campaign_in(record("a", lease), None))
}

fn begin(revision: u64, until: u64, cause: Cause) -> Action {
    Action::Begin { term: term(revision), until: at(until), cause }
}

/// Balancer `a`, started and with a lease granted at 0, knowing who holds the key.
fn standby(holder: Option<Holder>) -> Election {
    let mut election = Election::new(Settings::new("a", "a:7400"));
    assert_eq!(election.step(at(0), Event::Started), [Action::Grant, Action::ReadLeader]);
    election.step(at(0), granted(OWN, 0));
    election.step(at(0), found(1, holder));
    election
}

/// The same, leading in term 2.
fn leading() -> Election {
    let mut election = standby(None);
    check(&mut election, 1, done(2), &[begin(2, COMMANDS, Cause::Vacant)]);
    election
}

fn frozen() -> Election {
    let mut election = leading();
    election.step(at(1_000), Event::Tick);
    check(&mut election, COMMANDS, Event::Tick, &[Action::Freeze]);
    election
}

/// The same, with the leader's connection up.
fn attending() -> Election {
    let mut election = standby(other(5));
    check(&mut election, 1, Event::PeerUp(OTHER), &[]);
    election
}

#[track_caller]
fn check(election: &mut Election, ms: u64, event: Event, expected: &[Action]) {
    assert_eq!(election.step(at(ms), event.clone()), expected, "{event:?}");
}

#[test]
fn a_free_key_is_campaigned_for_once_lease_and_generation_are_known() {
    let mut election = Election::new(Settings::new("a", "a:7400"));
    election.step(at(0), Event::Started);
    check(&mut election, 1, told(1, None), &[]);
    check(&mut election, 2, granted(OWN, 0), &[]);
    check(&mut election, 3, found(1, None), &[campaign_of(OWN)]);
    assert_eq!(election.state(), State::Campaigning);
    check(&mut election, 9, done(2), &[begin(2, COMMANDS, Cause::Vacant)]);
    assert_eq!(election.state(), State::Leading { term: term(2), until: at(COMMANDS) });
}

#[test]
fn a_campaign_expects_the_generation_that_it_was_made_in() {
    let mut election = Election::new(Settings::new("a", "a:7400"));
    election.step(at(0), Event::Started);
    election.step(at(0), granted(OWN, 0));
    let generation = Generation { value: 3, modified: Some(Revision(8)) };
    let found = Event::Found(Found { revision: Revision(9), holder: None, generation });
    let actions = election.step(at(1), found);
    let [Action::Campaign(campaign)] = &actions[..] else { panic!("{actions:?}") };
    assert!(campaign.expects.contains(&Expect::Modified(Key::Generation, Revision(8))));
    let begun = Term { generation: 3, revision: 10 };
    let expected = Action::Begin { term: begun, until: at(COMMANDS), cause: Cause::Vacant };
    check(&mut election, 2, done(10), &[expected]);
}

#[test]
fn a_standby_connects_to_the_leader_and_keeps_a_lease_ready() {
    let mut election = standby(None);
    check(&mut election, 1, Event::CampaignAnswered(Answer::Refused), &[Action::ReadLeader]);
    check(&mut election, 2, found(5, other(5)), &[Action::ConnectPeer(record("b", OTHER))]);
    check(&mut election, TTL / 4, Event::Tick, &[Action::KeepAlive(OWN)]);
    check(&mut election, TTL / 4, Event::Tick, &[]);
    check(&mut election, TTL / 4 + 9, kept(TTL / 4), &[Action::ReadLeader]);
    check(&mut election, TTL / 2, Event::Tick, &[Action::KeepAlive(OWN)]);
    assert_eq!(election.state(), State::Standby);
}

#[test]
fn a_key_that_becomes_free_is_campaigned_for_at_once() {
    let mut election = standby(other(5));
    check(&mut election, 1, told(6, None), &[Action::DisconnectPeer, campaign_of(OWN)]);
    check(&mut election, 2, done(7), &[begin(7, COMMANDS, Cause::LeaseEnded)]);
}

#[test]
fn a_lost_campaign_looks_who_won() {
    let mut election = standby(None);
    check(&mut election, 1, Event::CampaignAnswered(Answer::Refused), &[Action::ReadLeader]);
    check(&mut election, 2, found(3, None), &[]);
    assert_eq!(election.wake(), Some(at(1 + PACE_MS)), "a refusal that does not end makes no busy loop");
    check(&mut election, 1 + PACE_MS, Event::Tick, &[campaign_of(OWN)]);
}

#[test]
fn a_campaign_whose_answer_is_lost_is_not_repeated_before_the_key_is_read() {
    let mut election = standby(None);
    check(&mut election, 9, Event::CampaignAnswered(Answer::Unknown), &[Action::ReadLeader]);
    check(&mut election, 500, Event::Tick, &[]);
    let ours = holder("a", OWN, 2);
    check(&mut election, 501, found(2, ours), &[begin(2, COMMANDS, Cause::Vacant)]);
}

#[test]
fn a_campaign_that_was_made_late_is_recognised_by_its_lease() {
    let mut election = standby(None);
    election.step(at(1), Event::CampaignAnswered(Answer::Unknown));
    check(&mut election, 2, found(1, None), &[]);
    let ours = holder("a", OWN, 2);
    check(&mut election, 3, told(2, ours), &[begin(2, COMMANDS, Cause::Vacant)]);
}

#[test]
fn a_watch_that_is_faster_than_the_answer_begins_the_term_once() {
    let mut election = standby(None);
    check(&mut election, 1, told(2, holder("a", OWN, 2)), &[begin(2, COMMANDS, Cause::Vacant)]);
    check(&mut election, 2, done(2), &[]);
}

#[test]
fn a_campaign_whose_lease_has_ended_begins_nothing() {
    let mut election = standby(None);
    check(&mut election, 1, Event::LeaseEnded(OWN), &[Action::Grant]);
    election.step(at(2), granted(LeaseId(2), 1));
    check(&mut election, 3, done(2), &[Action::ReadLeader]);
    assert_eq!(election.state(), State::Standby);
}

#[test]
fn each_keep_alive_extends_the_deadline_from_when_it_was_sent() {
    let mut election = leading();
    check(&mut election, 1_000, Event::Tick, &[Action::KeepAlive(OWN)]);
    let until = at(1_000 + COMMANDS);
    check(&mut election, 1_900, kept(1_000), &[Action::Extend { until }, Action::ReadLeader]);
    assert_eq!(election.wake(), Some(at(2_000)));
    check(&mut election, 1_901, Event::KeptAlive { lease: OTHER, sent_at: at(1_900) }, &[]);
}

#[test]
fn a_leader_freezes_at_its_deadline_whatever_comes_then() {
    for event in [Event::Tick, kept(1), told(2, holder("a", OWN, 2)), Event::HandOver { to: None }] {
        let mut election = leading();
        assert_eq!(election.wake(), Some(at(TTL / 4)));
        let actions = election.step(at(COMMANDS), event);
        assert_eq!(actions[0], Action::Freeze);
    }
}

#[test]
fn a_frozen_leader_thaws_once_lease_and_key_are_seen_to_live() {
    let mut election = frozen();
    assert_eq!(election.state(), State::Frozen { term: term(2) });
    check(&mut election, 5_000, Event::KeepAliveFailed { lease: OWN }, &[]);
    check(&mut election, 5_000 + RETRY_MS, Event::Tick, &[Action::KeepAlive(OWN)]);
    check(&mut election, 5_300, kept(5_250), &[Action::ReadLeader]);
    let until = at(5_250 + COMMANDS);
    check(&mut election, 5_310, found(9, holder("a", OWN, 2)), &[Action::Thaw { until }]);
    assert_eq!(election.state(), State::Leading { term: term(2), until });
}

#[test]
fn a_frozen_leader_does_not_thaw_by_what_came_too_late() {
    let mut election = frozen();
    check(&mut election, 5_000, kept(1_000), &[Action::KeepAlive(OWN), Action::ReadLeader]);
    check(&mut election, 5_001, found(9, holder("a", OWN, 2)), &[]);
    assert_eq!(election.state(), State::Frozen { term: term(2) });
}

#[test]
fn a_reign_ends_with_its_lease() {
    for mut election in [leading(), frozen()] {
        let end = Action::End { reason: Reason::LeaseEnded };
        let expected = [end, Action::Grant, Action::ReadLeader];
        check(&mut election, 1, Event::LeaseEnded(OTHER), &[]);
        check(&mut election, 1, Event::LeaseEnded(OWN), &expected);
        assert_eq!(election.state(), State::Standby);
    }
}

#[test]
fn a_reign_ends_when_another_holds_the_key() {
    let mut election = leading();
    let end = Action::End { reason: Reason::Lost };
    let expected = [
        end,
        Action::Revoke(OWN),
        Action::Grant,
        Action::ReadLeader,
        Action::ConnectPeer(record("b", OTHER)),
    ];
    check(&mut election, 9, told(5, other(5)), &expected);
}

#[test]
fn a_reign_ends_when_the_store_goes_back_even_if_the_key_is_in_the_backup() {
    let mut election = leading();
    let ours = holder("a", OWN, 2);
    election.step(at(1), kept(1));
    check(&mut election, 2, found(60, ours.clone()), &[]);
    check(&mut election, 3, Event::WriteRefused, &[Action::ReadLeader]);
    let end = Action::End { reason: Reason::StoreRestored };
    check(&mut election, 4, found(40, ours), &[end, Action::Revoke(OWN), Action::Grant, Action::ReadLeader]);
    election.step(at(5), granted(LeaseId(2), 4));
    check(&mut election, 6, found(41, None), &[campaign_of(LeaseId(2))]);
    let behind = Action::Behind { term: term(42), highest: term(60) };
    check(&mut election, 7, done(42), &[behind]);
}

#[test]
fn a_standby_that_sees_the_store_go_back_leads_after_an_adoption_only() {
    let mut election = standby(other(5));
    election.step(at(1), kept(1));
    election.step(at(2), found(60, other(5)));
    election.step(at(3), kept(2));
    election.step(at(4), found(40, other(5)));
    election.step(at(5), told(41, None));
    let behind = Action::Behind { term: term(42), highest: term(60) };
    check(&mut election, 7, done(42), &[behind]);
}

#[test]
fn a_read_that_was_asked_before_the_news_is_no_sign_of_a_restored_store() {
    let mut election = standby(other(5));
    election.step(at(1), kept(1));
    election.step(at(2), told(70, other(70)));
    check(&mut election, 3, found(60, other(5)), &[]);
    assert_eq!(election.leader(), other(70).as_ref());
    assert_eq!(election.highest(), term(70));
}

#[test]
fn what_was_before_a_reign_does_not_end_it() {
    let mut election = leading();
    check(&mut election, 9, told(1, None), &[]);
    check(&mut election, 9, told(1, other(1)), &[]);
    check(&mut election, 9, found(1, None), &[]);
    check(&mut election, 9, told(3, holder("a", OWN, 2)), &[]);
}

#[test]
fn a_reset_connection_that_is_refused_once_more_ends_the_leaders_lease() {
    let mut election = attending();
    check(&mut election, 2, Event::PeerReset(OTHER), &[Action::RetryPeer(record("b", OTHER))]);
    check(&mut election, 3, Event::PeerRefused(OTHER), &[Action::Revoke(OTHER)]);
    check(&mut election, 4, Event::Revoked(OTHER), &[Action::DisconnectPeer, campaign_of(OWN)]);
    check(&mut election, 5, done(9), &[begin(9, COMMANDS, Cause::Assisted)]);
}

#[test]
fn silence_never_ends_the_leaders_lease() {
    let mut election = attending();
    check(&mut election, 2, Event::PeerAway(OTHER), &[]);
    check(&mut election, 3, Event::PeerRefused(OTHER), &[]);
    check(&mut election, 4, Event::PeerReset(OTHER), &[]);
    let mut election = attending();
    election.step(at(2), Event::PeerReset(OTHER));
    check(&mut election, 3, Event::PeerAway(OTHER), &[]);
    check(&mut election, 4, Event::PeerRefused(OTHER), &[]);
}

#[test]
fn an_address_that_never_answered_proves_nothing() {
    let mut election = standby(other(5));
    check(&mut election, 1, Event::PeerReset(OTHER), &[]);
    check(&mut election, 2, Event::PeerRefused(OTHER), &[]);
}

#[test]
fn a_leader_that_is_still_there_keeps_its_lease() {
    let mut election = attending();
    election.step(at(2), Event::PeerReset(OTHER));
    check(&mut election, 3, Event::PeerUp(OTHER), &[]);
    check(&mut election, 4, Event::PeerRefused(OTHER), &[]);
}

#[test]
fn an_end_of_the_leaders_lease_that_fails_is_asked_for_again() {
    let mut election = attending();
    election.step(at(2), Event::PeerReset(OTHER));
    election.step(at(3), Event::PeerRefused(OTHER));
    check(&mut election, 4, Event::RevokeFailed(OTHER), &[]);
    assert_eq!(election.wake(), Some(at(4 + RETRY_MS)));
    check(&mut election, 4 + RETRY_MS, Event::Tick, &[Action::Revoke(OTHER)]);
}

#[test]
fn the_reign_of_the_process_before_is_ended_at_the_start() {
    let mut election = Election::new(Settings::new("a", "a:7400"));
    election.step(at(0), Event::Started);
    election.step(at(0), granted(OWN, 0));
    let before = holder("a", LeaseId(50), 4);
    check(&mut election, 1, found(4, before), &[Action::Revoke(LeaseId(50))]);
    check(&mut election, 2, Event::Revoked(LeaseId(50)), &[Action::DisconnectPeer, campaign_of(OWN)]);
}

#[test]
fn another_balancer_of_the_same_name_is_no_predecessor_later_on() {
    let mut election = standby(other(5));
    let same = holder("a", LeaseId(50), 6);
    let connect = Action::ConnectPeer(record("a", LeaseId(50)));
    check(&mut election, 1, told(6, same), &[connect]);
}

#[test]
fn a_leader_that_hands_over_stops_commanding_before_it_frees_the_key() {
    let mut election = leading();
    let to = Some("b".to_owned());
    let expected = [
        Action::End { reason: Reason::HandedOver },
        Action::Resign { to: to.clone() },
        Action::Revoke(OWN),
        Action::Grant,
    ];
    check(&mut election, 9, Event::HandOver { to }, &expected);
    assert_eq!(election.state(), State::Resigning);
    check(&mut election, 10, granted(LeaseId(2), 9), &[]);
    check(&mut election, 11, Event::Revoked(OWN), &[Action::ReadLeader]);
    check(&mut election, 12, found(3, None), &[]);
    assert_eq!(election.wake(), Some(at(9 + HOLD_MS)), "it lets the others go first");
    check(&mut election, 9 + HOLD_MS, Event::Tick, &[Action::KeepAlive(LeaseId(2)), campaign_of(LeaseId(2))]);
}

#[test]
fn only_the_balancer_that_is_meant_campaigns_at_once() {
    for (to, waits) in [(Some("a"), false), (None, false), (Some("c"), true)] {
        let mut election = standby(other(5));
        let to = to.map(str::to_owned);
        check(&mut election, 1, Event::PeerResigns { lease: OTHER, to }, &[]);
        let campaigns = election.step(at(2), told(6, None)).contains(&campaign_of(OWN));
        assert_eq!(campaigns, !waits);
        if waits {
            check(&mut election, 1 + HOLD_MS, Event::Tick, &[Action::KeepAlive(OWN), campaign_of(OWN)]);
        }
        let begun = election.step(at(2_000), done(7));
        assert_eq!(begun[0], begin(7, COMMANDS, Cause::HandedOver));
    }
}

#[test]
fn a_balancer_that_stops_hands_over_and_campaigns_no_more() {
    let mut election = leading();
    let expected =
        [Action::End { reason: Reason::Stopped }, Action::Resign { to: None }, Action::Revoke(OWN)];
    check(&mut election, 9, Event::Stop, &expected);
    assert!(!election.is_over());
    check(&mut election, 10, Event::Revoked(OWN), &[]);
    assert!(election.is_over());
    check(&mut election, 11, told(5, None), &[]);
    assert_eq!(election.wake(), None);
}

#[test]
fn a_campaign_that_is_won_after_the_stop_is_given_back() {
    let mut election = standby(None);
    check(&mut election, 1, Event::Stop, &[]);
    check(&mut election, 2, done(2), &[Action::Resign { to: None }, Action::Revoke(OWN)]);
    let mut election = standby(None);
    election.step(at(1), Event::Stop);
    check(&mut election, 2, Event::CampaignAnswered(Answer::Unknown), &[Action::Revoke(OWN)]);
    assert!(election.is_over());
}

#[test]
fn a_standby_that_stops_gives_up_its_lease() {
    let mut election = standby(other(5));
    check(&mut election, 1, Event::Stop, &[Action::Revoke(OWN)]);
    let mut election = Election::new(Settings::new("a", "a:7400"));
    election.step(at(0), Event::Started);
    check(&mut election, 1, Event::Stop, &[]);
    assert!(!election.is_over());
    check(&mut election, 2, granted(OWN, 0), &[Action::Revoke(OWN)]);
    assert!(election.is_over());
}

/// Balancer `a`, which has seen term 900 of `b`, on a store that was restored: it wins at revision 12.
fn behind() -> Election {
    let mut election = standby(other(900));
    election.step(at(1), told(11, None));
    let expected = Action::Behind { term: term(12), highest: term(900) };
    check(&mut election, 2, done(12), &[expected]);
    election
}

#[test]
fn a_term_that_is_not_above_all_known_ones_does_not_begin() {
    let mut election = behind();
    assert_eq!(election.state(), State::Behind { term: term(12) });
    check(
        &mut election,
        9,
        Event::HandOver { to: None },
        &[Action::Resign { to: None }, Action::Revoke(OWN), Action::Grant],
    );
}

fn adoption(revision: u64, generation: u64) -> Action {
    let change = Change::Put(Key::Generation, Record::Generation(generation), None);
    Action::Adopt(records::guarded(term(revision), vec![change]))
}

#[test]
fn an_adoption_raises_the_generation_above_all_that_were_seen() {
    let mut election = behind();
    let claimed = Term { generation: 4, revision: 1 };
    check(&mut election, 3, Event::TermClaimed(claimed), &[]);
    check(&mut election, 4, Event::Adopt { audit: vec![] }, &[adoption(12, 5)]);
    let adopted = Term { generation: 5, revision: 12 };
    let begin = Action::Begin { term: adopted, until: at(COMMANDS), cause: Cause::Adopted };
    let answered = Event::AdoptAnswered(Answer::Done(Revision(13)));
    check(&mut election, 5, answered, &[begin, Action::Adopted(Ok(adopted))]);
}

#[test]
fn an_adoption_ends_the_term_of_a_leader_and_begins_the_next() {
    let mut election = leading();
    election.step(at(4), Event::Adopt { audit: vec![] });
    check(&mut election, 4, Event::Adopt { audit: vec![] }, &[Action::Adopted(Err(AdoptError::Busy))]);
    let actions = election.step(at(5), Event::AdoptAnswered(Answer::Done(Revision(13))));
    assert_eq!(actions[0], Action::End { reason: Reason::Adopted });
    assert!(matches!(actions[1], Action::Begin { term: Term { generation: 1, revision: 2 }, .. }));
    // A read that was under way says nothing of the new term.
    check(&mut election, 6, found(3, holder("a", OWN, 2)), &[]);
}

#[test]
fn an_adoption_whose_answer_is_lost_is_made_again_and_once() {
    let mut election = leading();
    election.step(at(4), Event::Adopt { audit: vec![] });
    check(&mut election, 5, Event::AdoptAnswered(Answer::Unknown), &[]);
    check(&mut election, 5 + RETRY_MS, Event::Tick, &[adoption(2, 1)]);
    check(&mut election, 300, Event::AdoptAnswered(Answer::Refused), &[Action::ReadLeader]);
    let generation = Generation { value: 1, modified: Some(Revision(3)) };
    let found = Found { revision: Revision(3), holder: holder("a", OWN, 2), generation };
    let actions = election.step(at(301), Event::Found(found));
    assert!(matches!(actions[1], Action::Begin { term: Term { generation: 1, revision: 2 }, .. }));
    assert!(matches!(actions[2], Action::Adopted(Ok(_))));
}

#[test]
fn only_who_leads_adopts() {
    for mut election in [standby(other(5)), frozen()] {
        let actions = election.step(at(COMMANDS), Event::Adopt { audit: vec![] });
        assert!(actions.contains(&Action::Adopted(Err(AdoptError::NotLeader))), "{actions:?}");
    }
    let mut election = leading();
    election.step(at(3), Event::TermClaimed(Term { generation: u64::MAX, revision: 0 }));
    let expected = Action::Adopted(Err(AdoptError::NoneAbove(u64::MAX)));
    check(&mut election, 4, Event::Adopt { audit: vec![] }, &[expected]);
}

#[test]
fn a_generation_that_went_back_ends_the_reign() {
    let mut election = leading();
    election.step(at(4), Event::Adopt { audit: vec![] });
    election.step(at(5), Event::AdoptAnswered(Answer::Done(Revision(3))));
    check(&mut election, 6, Event::WriteRefused, &[Action::ReadLeader]);
    let actions = election.step(at(7), found(4, holder("a", OWN, 2)));
    assert_eq!(actions[0], Action::End { reason: Reason::Lost });
}

#[test]
fn a_store_that_does_not_answer_is_asked_again() {
    let mut election = Election::new(Settings::new("a", "a:7400"));
    election.step(at(0), Event::Started);
    check(&mut election, 5, Event::GrantFailed, &[]);
    check(&mut election, 5, Event::ReadFailed, &[]);
    assert_eq!(election.wake(), Some(at(5 + RETRY_MS)));
    check(&mut election, 5 + RETRY_MS, Event::Tick, &[Action::Grant, Action::ReadLeader]);
}
