//! What agents say after Hello.

use super::ControlLoop;
use crate::metrics as m;
use evenkeel_core::protocol::reign::{self, StreamId};
use evenkeel_core::protocol::unit::{Answer, PlanRef};
use evenkeel_proto::v1;
use evenkeel_proto::v1::sync_request::Message;

impl ControlLoop {
    pub(super) fn message(&mut self, stream: StreamId, message: Message) {
        // A stream that was displaced by a newer one of the same node has nothing to say any more.
        let Some(entry) = self.reign.streams().get(&stream) else { return };
        let (unit, node) = (entry.unit().clone(), entry.node().clone());
        match message {
            Message::Hello(hello) => self.hello_again(stream, &hello),
            Message::Result(result) => self.result(stream, &result),
            Message::Ping(_) => self.step(reign::Event::Heard(stream)),
            Message::Report(report) => {
                self.step(reign::Event::Heard(stream));
                self.report(&unit, &node, report);
                self.maybe_solve(&unit);
            }
            Message::Event(event) => {
                self.step(reign::Event::Heard(stream));
                tracing::warn!(%unit, %node, kind = event.kind().as_str_name(), message = event.message, "agent event");
            }
        }
    }

    fn result(&mut self, stream: StreamId, result: &v1::PlanResult) {
        let Some((plan, answer)) = read_result(result) else {
            metrics::counter!(m::DECODE_ERRORS, "source" => "plan_result").increment(1);
            return self.end_stream(stream, "malformed_result");
        };
        let entry = &self.reign.streams()[&stream];
        let (name, node) = (entry.unit().to_string(), entry.node().to_string());
        for (path, bytes) in [("local", result.bytes_local), ("peer", result.bytes_from_peers)] {
            metrics::counter!(m::MOVED_BYTES, "unit" => name.clone(), "path" => path).increment(bytes);
        }
        metrics::counter!(m::SLOTS_VERIFIED, "unit" => name.clone()).increment(result.slots_verified);
        if let Answer::Refused(code) = &answer {
            tracing::warn!(unit = name, node, code, message = result.message, "plan refused");
            metrics::counter!(m::PLAN_REFUSALS, "unit" => name, "code" => code.clone()).increment(1);
            if code == "delta_mismatch" && self.send_whole(stream, plan) {
                return self.step(reign::Event::Heard(stream));
            }
        }
        self.step(reign::Event::Result { stream, plan, answer });
    }

    /// Ends a stream for what came over it.
    pub(super) fn end_stream(&mut self, stream: StreamId, code: &'static str) {
        tracing::warn!(stream = stream.0, code, "agent's stream is closed");
        self.links.remove(&stream);
        self.step(reign::Event::Closed(stream));
    }
}

fn read_result(result: &v1::PlanResult) -> Option<(PlanRef, Answer)> {
    let plan = result.id.as_ref()?.try_into().ok()?;
    let answer = match result.outcome() {
        v1::PlanOutcome::Prepared => Answer::Prepared,
        v1::PlanOutcome::Applied => Answer::Applied,
        v1::PlanOutcome::Aborted => Answer::Aborted,
        v1::PlanOutcome::Refused => Answer::Refused(result.code.clone()),
        v1::PlanOutcome::Unspecified => return None,
    };
    Some((plan, answer))
}
