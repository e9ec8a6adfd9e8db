use zerocopy::FromZeros;

use super::*;

fn controller() -> IdentifyController {
    let mut id = IdentifyController::new_zeroed();
    id.vid = 0x1b36.into();
    id.sn = *b"S1                  ";
    id.tnvmcap = (1_u128 << 80).into();
    id.npss = 1;
    id.psd[0].mp = 2500.into();
    id.psd[1].mp = 49.into();
    id.psd[1].flags = 0b11;
    id.psd[1].ips = FINE << SCALE_SHIFT;
    id.psd[1].idlp = 30.into();
    id.psd[1].aps = COARSE << SCALE_SHIFT | 2;
    id
}

fn namespace() -> IdentifyNamespace {
    let mut id = IdentifyNamespace::new_zeroed();
    id.nsze = 0x10_0000.into();
    id.nlbaf = 1;
    id.flbas = 1;
    id.lbaf[0].lbads = 9;
    id.lbaf[1].lbads = 12;
    id.eui64 = [0x52, 0x54, 0, 0, 0, 0, 0, 1];
    id
}

#[test]
fn the_controller_reads_as_from_nvme_cli() {
    let text = controller_text(&controller());
    let first = "NVME Identify Controller:\nvid       : 0x1b36\nssvid     : 0\nsn        : S1\n";
    assert!(text.starts_with(first), "{text}");
    let last = "ps      0 : mp:25.00W operational enlat:0 exlat:0 rrt:0 rrl:0
            rwt:0 rwl:0 idle_power:- active_power:-
            active_power_workload:-
ps      1 : mp:0.0049W non-operational enlat:0 exlat:0 rrt:0 rrl:0
            rwt:0 rwl:0 idle_power:0.0030W active_power:0.00W
            active_power_workload:80K 128KiB SW
";
    assert!(text.ends_with(last), "{text}");
}

#[test]
fn text_and_json_have_the_same_keys_in_the_same_order() {
    let id = controller();
    let json = controller_json(&id);
    let keys: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
    let text = controller_text(&id);
    let lines = text.lines().skip(1).filter_map(|line| line.split_once(':'));
    let shown: Vec<_> = lines.map(|(key, _)| key.trim().to_owned()).collect();
    assert_eq!(keys[..keys.len() - 1], shown[..keys.len() - 1]);
    assert_eq!(json["psds"].as_array().unwrap().len(), 2);
    assert_eq!(json["tnvmcap"].to_string(), (1_u128 << 80).to_string());
}

#[test]
fn counts_from_a_device_do_not_reach_past_the_tables() {
    let mut id = controller();
    id.npss = 255;
    assert_eq!(power_states(&id).count(), 32);
    let mut id = namespace();
    (id.nlbaf, id.nulbaf) = (255, 255);
    assert_eq!(formats(&id).count(), 64);
}

#[test]
fn the_namespace_reads_as_from_nvme_cli() {
    let text = namespace_text(NamespaceId(1), &namespace());
    assert!(text.starts_with("NVME Identify Namespace 1:\nnsze    : 0x100000\n"), "{text}");
    let last = "nguid   : 00000000000000000000000000000000
eui64   : 5254000000000001
lbaf  0 : ms:0   lbads:9  rp:0x0
lbaf  1 : ms:0   lbads:12 rp:0x0 (in use)
";
    assert!(text.ends_with(last), "{text}");
}

#[test]
fn preferred_sizes_show_only_if_they_mean_something() {
    let mut id = namespace();
    assert!(namespace_json(&id).get("npwg").is_none());
    id.nsfeat = 1 << 4;
    assert_eq!(namespace_json(&id)["npwg"], 0);
    assert_eq!(namespace_json(&id)["lbafs"][1], json!({"ms": 0, "ds": 12, "rp": 0}));
}

#[test]
fn a_uuid_has_its_dashes() {
    let bytes = core::array::from_fn(|index| index as u8);
    assert_eq!(uuid(bytes), "00010203-0405-0607-0809-0a0b0c0d0e0f");
}
