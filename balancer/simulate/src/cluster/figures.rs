//! What a simulation shows.

use super::setup::Objectives;

/// Samples of a run over time: a plot needs no more.
const SAMPLES: u64 = 240;

/// A distribution in a few numbers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spread {
    /// Values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Half of them are at most this.
    pub p50: f64,
    /// 90 % of them are at most this.
    pub p90: f64,
    /// 95 % of them are at most this.
    pub p95: f64,
    /// 99 % of them are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these values; nearest rank. All 0 without values.
    pub fn of(mut values: Vec<f32>) -> Self {
        values.sort_unstable_by(f32::total_cmp);
        let count = values.len();
        let at = |part: f64| {
            let index = ((part * count as f64).ceil() as usize).max(1) - 1;
            values.get(index).copied().unwrap_or(0.0).into()
        };
        let sum: f64 = values.iter().map(|&value| f64::from(value)).sum();
        Self {
            count: count as u64,
            // An empty sum is -0.
            mean: sum / count.max(1) as f64 + 0.0,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// What became of the requests that arrived. Each is counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fates {
    /// All of them.
    pub arrived: u64,
    /// Generated all of their output.
    pub finished: u64,
    /// Refused by a policy, or by an engine that would never have room.
    pub refused: u64,
    /// Lost with their rank.
    pub lost: u64,
    /// Not done when the simulation ended.
    pub unfinished: u64,
}

/// Loads of every rank of a kind over time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    /// End of each sample, ms.
    pub at_ms: Vec<f64>,
    /// `[samples][ranks of all units]`: prefill: new tokens run since the last sample; decode: KV tokens.
    pub tokens: Vec<Vec<f32>>,
    /// `[samples][ranks of all units]`: prefill: attention pairs run since the last sample; decode: running requests.
    pub second: Vec<Vec<f32>>,
}

/// How the units of one kind did, over the measured steps.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PoolFigures {
    /// Steps, of all units.
    pub steps: u64,
    /// Their time, ms.
    pub step_ms: Spread,
    /// Time of the steps by the mean of what their ranks took by themselves: 1 is perfect balance.
    pub step_over_ideal: f64,
    /// Part of the ranks' time in steps that they waited for the slowest.
    pub idle_at_barrier: f64,
    /// Part of the units' time in which no step ran.
    pub idle_without_work: f64,
    /// Max over mean of the ranks, step by step: new tokens (prefill) or KV tokens (decode).
    pub tokens_imbalance: Spread,
    /// Max over mean of the ranks, step by step: attention pairs (prefill) or requests (decode).
    pub second_imbalance: Spread,
    /// The highest mean over one second of `second_imbalance`.
    pub second_imbalance_worst_s: f64,
    /// Mean of a rank, step by step: new tokens or KV tokens.
    pub tokens_per_rank: f64,
    /// Mean of a rank, step by step: attention pairs or requests.
    pub second_per_rank: f64,
    /// Most requests that policies held at once.
    pub held_max: u64,
    /// Running requests that changed their rank.
    pub migrations: u64,
    /// Requests that waited again because KV overflowed.
    pub preemptions: u64,
    /// Loads over time.
    pub series: Series,
}

/// All figures of a run. Requests count that arrived after the warm-up and before the end; what is not done has failed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// The policies by their names.
    pub policy: String,
    /// Of all requests.
    pub fates: Fates,
    /// Of the measured requests.
    pub measured: Fates,
    /// First tokens, ms after the arrival. A request that never has one, refused or not, counts with the time until the simulation
    /// stops: a policy that serves nobody is not fast.
    pub ttft_ms: Spread,
    /// Each of them, in the order of arrival: several runs make one distribution.
    pub ttft_each_ms: Vec<f32>,
    /// Mean time of a request's further tokens, ms. The hand-off and waiting for decode count.
    pub tpot_ms: Spread,
    /// Each of them, in the order of arrival.
    pub tpot_each_ms: Vec<f32>,
    /// Part of the measured requests whose first token met the objective.
    pub ttft_met: f64,
    /// Part whose further tokens met it.
    pub tpot_met: f64,
    /// Part that met both.
    pub goodput_part: f64,
    /// Requests a second that met both.
    pub goodput_per_s: f64,
    /// Prompt tokens of the measured requests whose prompt ran.
    pub prompt_tokens: u64,
    /// Of these, cached where they ran.
    pub hit_tokens: u64,
    /// Prompt tokens of all measured requests, whether they ran or not.
    pub arrived_prompt_tokens: u64,
    /// Prompt tokens a second whose prompt ran in the measured time.
    pub input_tokens_per_s: f64,
    /// Tokens a second that were generated in the measured time.
    pub output_tokens_per_s: f64,
    /// Prefill units.
    pub prefill: Option<PoolFigures>,
    /// Decode units.
    pub decode: Option<PoolFigures>,
}

impl Figures {
    /// Part of the prompt tokens that were cached where they ran.
    pub fn hit_part(&self) -> f64 {
        self.hit_tokens as f64 / self.prompt_tokens.max(1) as f64
    }

    /// The same of all measured requests. What did not run found nothing: a policy that leaves the prompts that are not cached
    /// waiting is no better at finding the others.
    pub fn hit_part_of_all(&self) -> f64 {
        self.hit_tokens as f64 / self.arrived_prompt_tokens.max(1) as f64
    }
}

/// Gathers the steps of one kind of unit.
pub(super) struct Meter {
    warm_up_us: u64,
    end_us: u64,
    ranks: usize,
    step_ms: Vec<f32>,
    imbalance: [Vec<f32>; 2],
    /// Of the running second: (second, sum, steps) by unit.
    seconds: Vec<(u64, f64, u64)>,
    worst_s: f64,
    sums: [f64; 2],
    time_us: f64,
    own_us: f64,
    next_sample_us: u64,
    /// Running sample: sums (prefill) or last values (decode).
    sample: [Vec<f32>; 2],
    accumulates: bool,
    pub(super) held_max: usize,
    series: Series,
}

impl Meter {
    /// `accumulates`: samples are sums of steps, not their last values.
    pub(super) fn new((warm_up_us, end_us): (u64, u64), units: u16, ranks: u16, accumulates: bool) -> Self {
        let all = usize::from(units) * usize::from(ranks);
        Self {
            warm_up_us,
            end_us,
            ranks: ranks.into(),
            step_ms: Vec::new(),
            imbalance: [Vec::new(), Vec::new()],
            seconds: vec![(0, 0.0, 0); units.into()],
            worst_s: 0.0,
            sums: [0.0; 2],
            time_us: 0.0,
            own_us: 0.0,
            next_sample_us: 0,
            sample: [vec![0.0; all], vec![0.0; all]],
            accumulates,
            held_max: 0,
            series: Series::default(),
        }
    }

    /// A step of a unit: (first load, second load, own time) by rank.
    pub(super) fn step(
        &mut self,
        unit: u16,
        (begin_us, step_us): (u64, u64),
        loads: impl Iterator<Item = (f64, f64, f64)>,
    ) {
        let (mut sums, mut most, mut own) = ([0.0f64; 2], [0.0f64; 2], 0.0);
        let first = usize::from(unit) * self.ranks;
        for (index, (tokens, second, own_us)) in loads.enumerate() {
            for (which, value) in [tokens, second].into_iter().enumerate() {
                sums[which] += value;
                most[which] = most[which].max(value);
                let sample = &mut self.sample[which][first + index];
                *sample = if self.accumulates { *sample + value as f32 } else { value as f32 };
            }
            own += own_us;
        }
        if begin_us < self.warm_up_us || begin_us >= self.end_us {
            return;
        }
        let ranks = self.ranks as f64;
        self.step_ms.push((step_us as f64 / 1e3) as f32);
        self.time_us += step_us as f64;
        self.own_us += own / ranks;
        for which in 0..2 {
            self.sums[which] += sums[which] / ranks;
            if sums[which] > 0.0 {
                self.imbalance[which].push((most[which] * ranks / sums[which]) as f32);
            }
        }
        if sums[1] > 0.0 {
            self.second(unit, begin_us, most[1] * ranks / sums[1]);
        }
    }

    fn second(&mut self, unit: u16, begin_us: u64, imbalance: f64) {
        let second = begin_us / 1_000_000;
        let window = &mut self.seconds[usize::from(unit)];
        if window.0 != second {
            *window = (second, 0.0, 0);
        }
        window.1 += imbalance;
        window.2 += 1;
        // A window counts when it is nearly whole, for one step is no mean: the last step of the second closes it.
        let (_, sum, steps) = *window;
        self.worst_s = self.worst_s.max(if steps >= 8 { sum / steps as f64 } else { 0.0 });
    }

    /// Takes a sample if it is time.
    pub(super) fn sample(&mut self, now_us: u64) {
        if now_us < self.next_sample_us || now_us > self.end_us {
            return;
        }
        let every = (self.end_us / SAMPLES).max(1);
        self.next_sample_us = now_us - now_us % every + every;
        self.series.at_ms.push(now_us as f64 / 1e3);
        let take = |sample: &mut Vec<f32>, accumulates: bool| {
            let taken = sample.clone();
            if accumulates {
                sample.fill(0.0);
            }
            taken
        };
        self.series.tokens.push(take(&mut self.sample[0], self.accumulates));
        self.series.second.push(take(&mut self.sample[1], self.accumulates));
    }

    pub(super) fn figures(self, migrations: u64, preemptions: u64) -> PoolFigures {
        let steps = self.step_ms.len() as u64;
        let per_step = |sum: f64| sum / steps.max(1) as f64;
        let available_us = (self.end_us - self.warm_up_us) as f64 * self.seconds.len() as f64;
        let [tokens, second] = self.imbalance;
        PoolFigures {
            steps,
            step_ms: Spread::of(self.step_ms),
            step_over_ideal: if self.own_us > 0.0 { self.time_us / self.own_us } else { 1.0 },
            idle_at_barrier: if self.time_us > 0.0 { 1.0 - self.own_us / self.time_us } else { 0.0 },
            idle_without_work: (1.0 - self.time_us / available_us.max(1.0)).clamp(0.0, 1.0),
            tokens_imbalance: Spread::of(tokens),
            second_imbalance: Spread::of(second),
            second_imbalance_worst_s: self.worst_s,
            tokens_per_rank: per_step(self.sums[0]),
            second_per_rank: per_step(self.sums[1]),
            held_max: self.held_max as u64,
            migrations,
            preemptions,
            series: self.series,
        }
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Fate {
    #[default]
    Open,
    Finished,
    Refused,
    Lost,
}

/// Times of one request.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Course {
    pub(super) fate: Fate,
    pub(super) arrived_us: u64,
    pub(super) prompt_tokens: u64,
    pub(super) output_tokens: u64,
    /// When its prompt had run; 0 before.
    pub(super) first_token_us: u64,
    pub(super) ended_us: u64,
    pub(super) hit: u64,
}

impl Course {
    fn ttft_us(&self) -> Option<u64> {
        (self.first_token_us > 0).then(|| self.first_token_us - self.arrived_us)
    }

    /// The time to the first token; to the end if there is none: nobody gets faster by refusing.
    fn waited_us(&self, stop_us: u64) -> u64 {
        self.ttft_us().unwrap_or(stop_us - self.arrived_us)
    }

    fn tpot_us(&self) -> Option<f64> {
        let further = self.output_tokens.checked_sub(1).filter(|&further| further > 0)?;
        (self.fate == Fate::Finished).then(|| (self.ended_us - self.first_token_us) as f64 / further as f64)
    }
}

fn fates<'a>(courses: impl Iterator<Item = &'a Course>) -> Fates {
    let mut fates = Fates::default();
    for course in courses {
        fates.arrived += 1;
        match course.fate {
            Fate::Open => fates.unfinished += 1,
            Fate::Finished => fates.finished += 1,
            Fate::Refused => fates.refused += 1,
            Fate::Lost => fates.lost += 1,
        }
    }
    fates
}

/// The figures of requests, measured from `warm_up_us` to `end_us`, in a simulation that stops at `stop_us`; `generates`: whether outputs were simulated.
pub(super) fn of_courses(
    courses: &[Course],
    (warm_up_us, end_us, stop_us): (u64, u64, u64),
    objectives: &Objectives,
    generates: bool,
) -> Figures {
    let measured = || courses.iter().filter(|course| course.arrived_us >= warm_up_us);
    let (mut ttft_met, mut tpot_met, mut both) = (0u64, 0u64, 0u64);
    let (mut prompt_tokens, mut hit_tokens) = (0, 0);
    for course in measured() {
        let allowed = |c: &Course| {
            objectives.ttft_us + objectives.ttft_us_per_uncached_token * (c.prompt_tokens - c.hit) as f64
        };
        let first = course.ttft_us().is_some_and(|ttft| ttft as f64 <= allowed(course));
        let rest = course.fate == Fate::Finished
            && (!generates || course.tpot_us().is_none_or(|tpot| tpot <= objectives.tpot_us));
        ttft_met += u64::from(first);
        tpot_met += u64::from(rest);
        both += u64::from(first && rest);
        if course.first_token_us > 0 {
            prompt_tokens += course.prompt_tokens;
            hit_tokens += course.hit;
        }
    }
    let all = fates(courses.iter());
    let of_measured = fates(measured());
    let part = |met: u64| met as f64 / of_measured.arrived.max(1) as f64;
    let seconds = (end_us - warm_up_us).max(1) as f64 / 1e6;
    let inside = |at: u64| (warm_up_us..end_us).contains(&at);
    let ran = courses.iter().filter(|c| c.first_token_us > 0 && inside(c.first_token_us));
    let ttft_each_ms: Vec<f32> = measured().map(|c| (c.waited_us(stop_us) as f64 / 1e3) as f32).collect();
    let tpot = measured().filter(|_| generates).filter_map(Course::tpot_us);
    let tpot_each_ms: Vec<f32> = tpot.map(|us| (us / 1e3) as f32).collect();
    let generated = courses.iter().filter(|c| c.fate == Fate::Finished && inside(c.ended_us));
    Figures {
        policy: String::new(),
        fates: all,
        measured: of_measured,
        ttft_ms: Spread::of(ttft_each_ms.clone()),
        ttft_each_ms,
        tpot_ms: Spread::of(tpot_each_ms.clone()),
        tpot_each_ms,
        ttft_met: part(ttft_met),
        tpot_met: part(tpot_met),
        goodput_part: part(both),
        goodput_per_s: both as f64 / seconds,
        prompt_tokens,
        hit_tokens,
        arrived_prompt_tokens: measured().map(|course| course.prompt_tokens).sum(),
        input_tokens_per_s: ran.map(|c| c.prompt_tokens).sum::<u64>() as f64 / seconds,
        output_tokens_per_s: generated.map(|c| c.output_tokens).sum::<u64>() as f64 / seconds,
        prefill: None,
        decode: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let spread = Spread::of((1..=200).rev().map(|value| value as f32).collect());
        assert_eq!((spread.p50, spread.p90, spread.p99, spread.max), (100.0, 180.0, 198.0, 200.0));
        assert_eq!((spread.count, spread.mean), (200, 100.5));
        assert_eq!(Spread::of(vec![7.0]).p50, 7.0);
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }

    #[test]
    fn goodput_wants_both_objectives() {
        let met = Course {
            fate: Fate::Finished,
            arrived_us: 10,
            prompt_tokens: 1000,
            output_tokens: 11,
            first_token_us: 2_000_010,
            ended_us: 2_500_010,
            hit: 0,
        };
        let late = Course { first_token_us: 2_100_011, ended_us: 2_500_010, ..met };
        let slow = Course { ended_us: 2_500_020, ..met };
        let cached = Course { hit: 990, first_token_us: 2_001_011, ..met };
        let figures =
            of_courses(&[met, late, slow, cached], (0, 4_000_000, 4_000_000), &Objectives::default(), true);
        assert_eq!((figures.ttft_met, figures.tpot_met, figures.goodput_part), (0.5, 0.75, 0.25));
        assert_eq!((figures.goodput_per_s, figures.hit_tokens), (0.25, 990));
    }

    #[test]
    fn who_has_no_first_token_counts_until_the_end() {
        let waits = Course { arrived_us: 1_000, prompt_tokens: 10, output_tokens: 1, ..Course::default() };
        let refused = Course { fate: Fate::Refused, ..waits };
        let figures = of_courses(&[waits, refused], (0, 2_000, 9_000), &Objectives::default(), true);
        assert_eq!((figures.ttft_ms.count, figures.ttft_ms.max, figures.ttft_met), (2, 8.0, 0.0));
    }
}
