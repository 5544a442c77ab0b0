//! vLLM-Ascend's expert map file: MoE layers in order, each a list of devices with the experts of their slots. Every
//! device of every layer has equally many, as the engine makes one tensor of them; there are no empty slots.

use super::error::{FileError, Place};
use super::format::JsonPlan;
use super::json;
use super::plan_table::{PlanTable, Ranks};
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct AscendLayer {
    layer_id: usize,
    device_count: usize,
    device_list: Vec<AscendDevice>,
}

#[derive(Debug, Deserialize, Serialize)]
struct AscendDevice {
    device_id: usize,
    device_expert: Vec<i64>,
}

pub(super) fn read(path: &str, plan: JsonPlan) -> Result<PlanTable, FileError> {
    let layers = plan.layer_list.unwrap_or_default();
    if let Some(count) = plan.moe_layer_count.filter(|count| *count != layers.len()) {
        let problem = format!("moe_layer_count is {count}, and layer_list has {}", layers.len());
        return Err(FileError::plan(path, Place::Whole, problem));
    }
    let devices = layers.first().map_or(0, |layer| layer.device_list.len());
    let slots =
        layers.first().and_then(|layer| layer.device_list.first()).map_or(0, |d| d.device_expert.len());
    let mut rows = Vec::with_capacity(layers.len());
    for (at, layer) in layers.iter().enumerate() {
        if layer.device_count != layer.device_list.len() || layer.device_list.len() != devices {
            let (count, have) = (layer.device_count, layer.device_list.len());
            let problem =
                format!("device_count is {count}, device_list has {have}, and layer 0 has {devices} devices");
            return Err(FileError::plan(path, Place::Layer(at), problem));
        }
        if let Some(odd) = layer.device_list.iter().position(|device| device.device_expert.len() != slots) {
            let have = layer.device_list[odd].device_expert.len();
            let problem = format!("{have} experts: every device needs {slots}, as device 0 of layer 0 has");
            return Err(FileError::plan(path, Place::LayerDevice(at, odd), problem));
        }
        rows.push(layer.device_list.iter().flat_map(|device| device.device_expert.iter().copied()).collect());
    }
    let mut table = PlanTable::from_rows(path, &rows)?;
    if let Some((layer, slot)) = table.empty_slot() {
        let problem = "the slot is empty (-1), and vLLM-Ascend fills every slot";
        return Err(FileError::plan(path, Place::LayerSlot(layer, slot), problem));
    }
    table.ranks = Some(Ranks::equal(devices, table.slots()));
    Ok(table)
}

#[derive(Serialize)]
struct AscendFile {
    moe_layer_count: usize,
    layer_list: Vec<AscendLayer>,
}

pub(super) fn write(table: &PlanTable) -> Result<Vec<u8>, FileError> {
    table.refuse_empty_slots("vLLM-Ascend")?;
    table.refuse_uneven_ranks("vLLM-Ascend")?;
    let Some(each) = table.ranks.as_ref().and_then(Ranks::slots_each).filter(|each| *each > 0) else {
        let problem =
            "vLLM-Ascend lists the slots device by device, and the plan does not tell the GPUs: add --gpus";
        return Err(FileError::not_representable(Place::Whole, problem));
    };
    let layer = |(layer_id, row): (usize, Vec<i64>)| {
        let device =
            |(device_id, slots): (usize, &[i64])| AscendDevice { device_id, device_expert: slots.to_vec() };
        let device_list: Vec<AscendDevice> = row.chunks(each.into()).enumerate().map(device).collect();
        AscendLayer { layer_id, device_count: device_list.len(), device_list }
    };
    let file = AscendFile {
        moe_layer_count: table.layers(),
        layer_list: table.rows().into_iter().enumerate().map(layer).collect(),
    };
    Ok(format!("{}\n", json::text(&file)).into_bytes())
}
