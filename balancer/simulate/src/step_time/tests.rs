use super::calibration::{Calibration, table};
use super::*;

fn service() -> DeepSeekV3 {
    DeepSeekV3::new(Calibration::Service)
}

#[test]
fn the_fitted_figures_are_met_and_only_two_are_fitted() {
    for calibration in [Calibration::Service, Calibration::Profile] {
        let table = table(calibration);
        assert_eq!(table.iter().filter(|line| line.fitted).count(), 2);
        for line in table.iter().filter(|line| line.fitted) {
            let error = line.modelled / line.point.stated - 1.0;
            assert!(error.abs() < 1e-3, "{calibration:?}: {} is off by {error}", line.point.name);
        }
    }
}

#[test]
fn kernels_at_their_best_are_faster_than_anybody_measured() {
    for line in table(Calibration::Service) {
        let best = line.point.modelled(&DeepSeekV3::UNSTRETCHED);
        assert!(best > line.point.stated, "{}: {best} is below {}", line.point.name, line.point.stated);
    }
}

#[test]
fn held_out_figures_are_met_within_a_quarter_by_the_profile() {
    for line in table(Calibration::Profile).iter().skip(2) {
        let error = line.modelled / line.point.stated - 1.0;
        assert!(error.abs() < 0.26, "{} by {}: off by {error}", line.point.name, line.point.source);
    }
}

#[test]
fn more_work_takes_longer() {
    let model = service();
    let prefill = |tokens, attention| model.prefill_us(Work { tokens, attention });
    assert!(prefill(8192, 1 << 25) > prefill(8192, 1 << 24));
    assert!(prefill(8192, 1 << 24) > prefill(4096, 1 << 24));
    assert!(model.decode_us(400_000, 80) > model.decode_us(300_000, 80));
    assert!(model.decode_us(400_000, 90) > model.decode_us(400_000, 80));
    assert!(model.decode_us(0, 0) > 0.0, "the weights are read");
}

#[test]
fn attention_weighs_as_the_design_says() {
    // c_att / c_lin = 0.7e-4 ... 1.4e-4, from steps whose computing bounds them.
    let time = |attention| service().prefill_us(Work { tokens: 16_384, attention });
    let base = 16_384 * 4096;
    let per_pair = (time(2 * base) - time(base)) / base as f64;
    let per_token = (time(base) - per_pair * base as f64) / 16_384.0;
    let ratio = per_pair / per_token;
    assert!((0.7e-4..1.4e-4).contains(&ratio), "{ratio}");
}

#[test]
fn overlap_pays_and_unequal_halves_cost() {
    let model = service();
    let work = Work { tokens: 16_384, attention: 16_384 * 2048 };
    let part = |tokens: u64, attention: u64| Work { tokens, attention };
    let serial = DeepSeekV3 { prefill_overlap: Overlap::None, decode_overlap: Overlap::None, ..model };
    assert!(serial.prefill_us(work) > 1.2 * model.prefill_us(work));
    assert!(serial.decode_us(430_000, 88) > 1.2 * model.decode_us(430_000, 88));
    let uneven = [part(11_000, work.attention / 2), part(5_384, work.attention / 2)];
    assert!(model.prefill_halves_us(uneven) > 1.03 * model.prefill_us(work));
}
