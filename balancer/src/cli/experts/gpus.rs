//! The flags that say what GPUs there are.

use super::list::numbers;
use super::{Failure, refused};
use crate::expert_files::{PlanTable, Ranks};
use clap::Args;
use evenkeel_core::experts::{Deployment, InputError, RankSpec};

/// GPUs to plan for.
#[derive(Args)]
pub(super) struct Gpus {
    /// GPUs of the expert-parallel unit
    #[arg(long, value_name = "G", required_unless_present = "rank_slots")]
    gpus: Option<usize>,
    /// Physical experts of a layer on all GPUs together; a multiple of the GPUs
    #[arg(long, value_name = "P", required_unless_present = "rank_slots", conflicts_with = "rank_slots")]
    slots: Option<usize>,
    /// Nodes, which share the GPUs equally in their order
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    /// Groups of neighbouring experts that routing visits together
    #[arg(long, value_name = "K", default_value_t = 1)]
    groups: usize,
    /// Slots of every GPU in place of --slots: 9,9,8 or 9x31,0 (31 times 9) or a file
    #[arg(long, value_name = "LIST|FILE")]
    rank_slots: Option<String>,
    /// Relative speed of every GPU: 1x16,0.5x16 or a file [default: all alike]
    #[arg(long, value_name = "LIST|FILE")]
    rank_speeds: Option<String>,
}

impl Gpus {
    /// The GPUs with `more` slots each than the flags say.
    pub(super) fn ranks(&self, more: u16) -> Result<Ranks, Failure> {
        let given = match &self.rank_slots {
            Some(list) => Some(numbers::<u16>("--rank-slots", list)?),
            None => None,
        };
        let slots = match given {
            Some(slots) => agree("--rank-slots", slots, self.gpus)?,
            None => equal_slots(self.gpus.unwrap_or(0), self.slots.unwrap_or(0))?,
        };
        let speeds = speeds(self.rank_speeds.as_deref(), slots.len())?;
        // A GPU without slots is dead, and gets none.
        let with_more = |slots: &u16| if *slots == 0 { 0 } else { slots.saturating_add(more) };
        let slots = slots.iter().map(with_more).collect();
        Ok(Ranks { slots, speeds, nodes: self.nodes })
    }

    /// What the core plans for.
    pub(super) fn deployment(&self, ranks: &Ranks) -> Result<Deployment, Failure> {
        deployment(ranks, self.groups)
    }
}

/// GPUs of a plan that exists already.
#[derive(Args)]
pub(super) struct PlanGpus {
    /// GPUs that the slots belong to, in equal blocks [default: as the plan tells]
    #[arg(long, value_name = "G")]
    gpus: Option<usize>,
    /// Nodes, which share the GPUs equally in their order [default: as the plan tells, or 1]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Slots of every GPU: 9,9,8 or 9x31,0 (31 times 9) or a file [default: as the plan tells]
    #[arg(long, value_name = "LIST|FILE")]
    rank_slots: Option<String>,
    /// Relative speed of every GPU: 1x16,0.5x16 or a file [default: as the plan tells, or all alike]
    #[arg(long, value_name = "LIST|FILE")]
    rank_speeds: Option<String>,
}

impl PlanGpus {
    /// The GPUs by the flags, and what these leave open by the plan.
    pub(super) fn ranks(&self, path: &str, plan: &PlanTable) -> Result<Ranks, Failure> {
        let total = plan.slots();
        let slots = match (&self.rank_slots, self.gpus, &plan.ranks) {
            (Some(list), gpus, _) => agree("--rank-slots", numbers("--rank-slots", list)?, gpus)?,
            (None, Some(gpus), told) => match told {
                Some(ranks) if ranks.slots.len() == gpus => ranks.slots.clone(),
                _ => equal_slots(gpus, total)?,
            },
            (None, None, Some(ranks)) => ranks.slots.clone(),
            (None, None, None) => {
                let problem =
                    format!("{path}: the file does not tell the GPUs of its {total} slots: add --gpus");
                return Err(refused("experts_gpus_needed", problem));
            }
        };
        let sum: usize = slots.iter().map(|slots| usize::from(*slots)).sum();
        if sum != total {
            let problem = format!("{path}: the plan has {total} slots, and the GPUs have {sum}");
            return Err(refused("experts_plan_shape", problem));
        }
        let told = plan.ranks.as_ref().filter(|ranks| ranks.slots.len() == slots.len());
        let speeds = match (&self.rank_speeds, told) {
            (None, Some(ranks)) => ranks.speeds.clone(),
            (list, _) => speeds(list.as_deref(), slots.len())?,
        };
        Ok(Ranks { nodes: self.nodes.or(told.map(|ranks| ranks.nodes)).unwrap_or(1), slots, speeds })
    }
}

/// The core's view of the GPUs; refuses what it cannot plan for.
pub(super) fn deployment(ranks: &Ranks, groups: usize) -> Result<Deployment, Failure> {
    let (count, nodes) = (ranks.slots.len(), ranks.nodes);
    if nodes == 0 || !count.is_multiple_of(nodes) {
        return Err(InputError::NodesNotDivisible { ranks: count, nodes }.into());
    }
    if groups == 0 {
        return Err(refused("experts_groups", "--groups 0: use 1 for none"));
    }
    let of_node = count / nodes;
    let spec = |(rank, (&slots, &speed)): (usize, (&u16, &f64))| RankSpec {
        slots,
        speed,
        node: u16::try_from(rank / of_node).unwrap_or(u16::MAX),
    };
    let specs = ranks.slots.iter().zip(&ranks.speeds).enumerate().map(spec).collect();
    Ok(Deployment::new(specs, groups)?)
}

fn equal_slots(gpus: usize, slots: usize) -> Result<Vec<u16>, Failure> {
    // The checks and their words are the core's.
    let uniform = Deployment::uniform(gpus, slots, 1, 1)?;
    Ok(uniform.ranks().iter().map(|rank| rank.slots).collect())
}

fn agree<T>(flag: &str, list: Vec<T>, gpus: Option<usize>) -> Result<Vec<T>, Failure> {
    match gpus {
        Some(gpus) if gpus != list.len() => {
            let problem = format!(
                "{flag} has {} numbers, and --gpus says {gpus}: a number per GPU is needed",
                list.len()
            );
            Err(refused("experts_list", problem))
        }
        _ => Ok(list),
    }
}

fn speeds(list: Option<&str>, gpus: usize) -> Result<Vec<f64>, Failure> {
    match list {
        Some(list) => agree("--rank-speeds", numbers("--rank-speeds", list)?, Some(gpus)),
        None => Ok(vec![1.0; gpus]),
    }
}
