//! Versions of the agents' protocol: N talks to N - 1, so that balancers and agents can be renewed one by one.

/// The newest version that this build speaks.
pub const PROTOCOL_VERSION: u32 = 2;
/// The oldest. Version 1 has neither standbys nor events, and its PREPARE carries the plan whole.
pub const PROTOCOL_VERSION_MIN: u32 = PROTOCOL_VERSION - 1;

/// The version to speak with a side that speaks `min` to `max`: the highest that both know, if there is one.
pub fn choose_protocol(min: u32, max: u32) -> Option<u32> {
    let (lowest, highest) = (min.max(PROTOCOL_VERSION_MIN), max.min(PROTOCOL_VERSION));
    (lowest <= highest).then_some(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(min: u32, max: u32, chosen: Option<u32>) {
        assert_eq!(choose_protocol(min, max), chosen, "{min} to {max}");
    }

    #[test]
    fn neighbours_talk_and_others_do_not() {
        let n = PROTOCOL_VERSION;
        check(n, n, Some(n));
        check(n - 1, n, Some(n));
        check(n - 1, n - 1, Some(n - 1));
        check(n, n + 1, Some(n));
        check(n + 1, n + 1, None);
        check(0, n - 2, None);
        check(0, u32::MAX, Some(n));
        check(n + 1, n - 1, None);
    }
}
