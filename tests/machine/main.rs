//! The driver on controllers that nobody here wrote: VFIO, an IOMMU, QEMU's NVMe, in the guest of `scripts/vm`.
//!
//! Run by `scripts/test machine`. On a machine that has no `/zoo` there is nothing to run on, and it says so. Each scene
//! takes devices of the zoo by name and leaves them with the kernel's driver; those of one boot are run one after the
//! other, and a panic is a failure of its scene alone.

mod guest;
mod scenes;
mod setup;
mod trouble;

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::Instant;

use guest::has;

/// What happens, and on which devices.
pub(crate) struct Scene {
    name: &'static str,
    needs: &'static [&'static str],
    run: fn(),
}

/// Makes the table of scenes.
macro_rules! scenes {
    ($($module:ident::$name:ident [$($device:literal)*])+) => {
        &[$(Scene { name: stringify!($name), needs: &[$($device),*], run: $module::$name }),+]
    };
}

const SCENES: &[Scene] = scenes! {
    scenes::a_controller_is_brought_up_again_and_again ["lba512"]
    scenes::what_the_kernel_writes_we_read_and_the_reverse ["lba512"]
    scenes::a_filesystem_that_we_have_copied_is_mounted ["disk" "lba512"]
    scenes::an_ordinary_user_who_owns_the_group_drives_the_device ["lba512"]
    scenes::a_second_process_is_refused ["lba512"]
    scenes::after_a_killed_process_the_device_starts_clean ["lba512"]
    scenes::what_is_in_the_way_is_named_and_nothing_is_touched ["lba512" "gaps" "shared"]
    scenes::without_hugepages_ordinary_pages_serve ["lba512"]
    setup::a_drive_goes_from_the_kernel_to_a_benchmark_and_back ["lba512"]
    setup::a_disk_in_use_is_never_taken ["disk"]
    setup::a_shared_group_is_named_by_doctor ["shared"]
    trouble::a_bad_block_is_told_and_the_next_one_is_read ["media"]
    trouble::a_controller_that_somebody_disabled_is_reset_and_goes_on ["media"]
    trouble::a_command_that_takes_too_long_is_a_timeout ["slow"]
    trouble::a_zone_that_is_written_out_of_order_says_so ["zoned"]
    trouble::registers_that_read_as_zeroes_under_load_are_a_device_that_is_gone ["lba512"]
    trouble::a_controller_that_fails_fatally_is_told ["lba512"]
    trouble::a_device_that_is_asked_back_under_load_is_let_go_of ["remove"]
};

/// What happens where no IOMMU translates.
const WITHOUT_IOMMU: &[Scene] = scenes! {
    setup::without_an_iommu_the_fix_is_named_and_memory_still_serves ["lba512"]
};

fn main() -> ExitCode {
    if !std::path::Path::new("/zoo").exists() {
        println!(
            "skipped: the scenes of tests/machine: this is not the guest of scripts/vm (scripts/test machine)"
        );
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let (mut passed, mut failed) = (0, 0);
    let has_iommu = udirect::pci::Sysfs::default().has_iommu();
    for scene in if has_iommu { SCENES } else { WITHOUT_IOMMU } {
        let is_wanted = wanted.is_empty() || wanted.iter().any(|word| scene.name.contains(word));
        if !is_wanted || !scene.needs.iter().all(|device| has(device)) {
            continue;
        }
        let began = Instant::now();
        let ended = catch_unwind(scene.run);
        let how = if ended.is_ok() { "ok" } else { "FAILED" };
        println!("scene {} ... {how} ({:.1} s)", scene.name, began.elapsed().as_secs_f32());
        if ended.is_ok() { passed += 1 } else { failed += 1 }
    }
    println!("{passed} scenes passed, {failed} failed");
    // A run in which nothing ran has shown nothing.
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
