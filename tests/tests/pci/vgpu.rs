//! A card whose virtual functions take vGPU types: its whole life, and what its lists let be.

use std::collections::BTreeSet;
use std::time::Duration;

use mdevd_dbus::{ErrorName, path, wire};
use mdevd_tests::fakesys::{Fault, Op, Point};
use mdevd_tests::harness::{Domain, claim_files, eventually, text_dict};

use super::common::*;

/// A domain that wants this function with this vGPU type.
pub fn typed(name: &str, vf: &str, vgpu_type: &str) -> Domain {
    wants_with(name, vf, &[("vgpu-type", vgpu_type)])
}

impl Lab {
    /// The virtual functions of the card.
    pub fn vgpus(&self) -> Vec<String> {
        self.host.view().vfs(GPU)
    }

    /// The numbers of the types that a function could have, as the bus says.
    pub async fn creatable(&self, vf: &str) -> Vec<u32> {
        let types = self.virtual_function(vf).await.creatable_vgpu_types().await.unwrap();
        types.into_iter().map(|(id, _)| id).collect()
    }

    /// Nothing but vGPU types was ever written: nothing was bound, unbound or reset.
    pub fn only_types_were_written(&self) {
        let writes = self.host.sys_writes();
        let others: Vec<_> = writes.iter().filter(|(path, ..)| !path.ends_with("/nvidia/current_vgpu_type")).collect();
        assert!(others.is_empty(), "{others:?}");
        for vf in self.vgpus() {
            assert_eq!(self.bound(&vf), (Some("nvidia".into()), None));
        }
    }

    async fn wait_creatable(&self, vf: &str, want: &[u32]) {
        eventually(&format!("{vf} can have {want:?}"), || async { self.creatable(vf).await == want }).await;
    }
}

#[tokio::test]
async fn the_life_of_32_domains_on_one_card() {
    let lab = Lab::start(gpu()).await;
    let vfs = lab.vgpus();
    assert_eq!(vfs.len(), 32);
    // By number, by name, and by name without the vendor's: all of one size.
    let ways = [("1145", 1145), ("NVIDIA L40S-1Q", 1147), ("L40S-1B", 1145)];
    let mut domains = Vec::new();
    for (n, vf) in vfs.iter().enumerate() {
        let (way, id) = ways[n % ways.len()];
        let vm = typed(&format!("vm{n}"), vf, way);
        let grants = vm.prepare(&lab.manager).await.unwrap();
        assert_eq!((grants.len(), wire::text(&grants[0], "device")), (1, vf.as_str()));
        assert!(wire::text(&grants[0], "xml").contains("managed='no'"), "{grants:?}");
        // The bus says so before the call has returned.
        assert_eq!(lab.virtual_function(vf).await.vgpu_type().await.unwrap(), id);
        assert_eq!(lab.function(vf).await.claim().await.unwrap(), path::claim(vm.uuid));
        domains.push((vm, id));
    }
    let all = || -> Vec<_> { vfs.iter().map(|vf| lab.host.view().vgpu_type(vf)).collect() };
    assert_eq!(all(), domains.iter().map(|(_, id)| Some(*id)).collect::<Vec<_>>());
    assert_eq!(claim_files(&lab.host).len(), 32);
    assert_eq!(lab.problems().await, Vec::<String>::new());

    // One more than there are.
    let late = typed("late", &vfs[7], "1145");
    assert_refused(late.prepare(&lab.manager).await, ErrorName::InUse, &[&vfs[7], "domain 'vm7'"]);
    let any = [text_dict(&[("name", "any"), ("vgpu-type", "1145")])];
    let refused = lab.manager.acquire(&any, &none()).await;
    assert_refused(refused, ErrorName::InUse, &["'any'", &vfs[0], "domain 'vm0'", "and 28 more", "hostdevctl explain"]);
    assert_eq!(lab.manager.explain(&any, &none()).await.unwrap().len(), 32);
    assert_eq!(claim_files(&lab.host).len(), 32);

    // They run, and one after the other ends.
    let running: Vec<_> = (0..).zip(&vfs).map(|(n, vf)| qemu(&lab.host, 4000 + n, vf)).collect();
    for (n, process) in running.iter().enumerate() {
        process.vanish();
        let (vm, _) = &domains[n];
        assert!(vm.release(&lab.manager).await.unwrap());
        lab.freed(vm).await;
        let want: Vec<_> = domains.iter().enumerate().map(|(i, (_, id))| (i > n).then_some(*id)).collect();
        assert_eq!(all(), want, "just this one's");
    }
    lab.only_types_were_written();
    lab.nothing_left().await;
    // And the place of each can be had again.
    late.prepare(&lab.manager).await.unwrap();
}

#[tokio::test]
async fn a_type_is_taken_away_before_another_is_chosen() {
    for (left_behind, want) in [(None, vec!["1148"]), (Some(1152), vec!["0", "1148"]), (Some(1148), vec!["0", "1148"])]
    {
        let lab = Lab::start(gpu().lists_current()).await;
        let vf = &lab.vgpus()[0];
        if let Some(id) = left_behind {
            lab.host.set_vgpu_type(vf, id).unwrap();
        }
        let written =
            || -> Vec<_> { lab.host.sys_writes().into_iter().map(|(_, value, errno)| (value, errno)).collect() };
        let vm = typed("vm1", vf, "1148");
        vm.prepare(&lab.manager).await.unwrap();
        assert_eq!(written(), want.iter().map(|text| (text.to_string(), None)).collect::<Vec<_>>(), "{left_behind:?}");
        lab.host.clear_log();
        vm.release(&lab.manager).await.unwrap();
        lab.freed(&vm).await;
        assert_eq!(written(), [("0".to_owned(), None)]);
        assert_eq!(lab.host.view().vgpu_type(vf), None);
    }
}

#[tokio::test]
async fn types_of_one_size_fill_the_card() {
    let lab = Lab::start(gpu()).await;
    let vfs = lab.vgpus();
    let mut domains = Vec::new();
    for (n, vf) in vfs.iter().enumerate().take(6) {
        let vm = typed(&format!("vm{n}"), vf, "1152");
        vm.prepare(&lab.manager).await.unwrap();
        domains.push(vm);
    }
    // The card is full; another size would not have done before.
    let late = typed("late", &vfs[6], "1152");
    let refused = late.prepare(&lab.manager).await;
    assert_refused(
        refused,
        ErrorName::NoCapacity,
        &[&vfs[6], "vGPU type 1152 now", "it can have: none now", "stop a VM"],
    );
    let other_size = typed("other", &vfs[6], "1148");
    assert_refused(other_size.prepare(&lab.manager).await, ErrorName::NoCapacity, &[&vfs[6], "1148"]);
    domains[2].release(&lab.manager).await.unwrap();
    lab.freed(&domains[2]).await;
    // There is room, but of the other size nothing.
    let refused = other_size.prepare(&lab.manager).await;
    assert_refused(refused, ErrorName::NoCapacity, &[&vfs[6], "1148", "1152 (NVIDIA L40S-8Q)"]);
    late.prepare(&lab.manager).await.unwrap();
    // Exactly that number, and no other that begins with it or ends with it.
    for (wrong, name) in
        [("115", ErrorName::NoCapacity), ("11520", ErrorName::NoCapacity), ("NVIDIA L40S-8", ErrorName::NoCapacity)]
    {
        let vm = typed("wrong", &vfs[9], wrong);
        assert_refused(vm.prepare(&lab.manager).await, name, &[wrong]);
    }
    for nonsense in ["", "0", "-1"] {
        assert!(typed("wrong", &vfs[9], nonsense).prepare(&lab.manager).await.is_err(), "{nonsense:?}");
    }
    lab.only_types_were_written();
}

#[tokio::test]
async fn mixed_sizes_where_the_card_lets_them() {
    let lab = Lab::start(gpu().mixed()).await;
    let vfs = lab.vgpus();
    for (n, (vf, id)) in vfs.iter().zip(["1152", "1148", "1145", "NVIDIA L40S-8Q"]).enumerate() {
        typed(&format!("vm{n}"), vf, id).prepare(&lab.manager).await.unwrap();
    }
    let have: Vec<_> = vfs[..4].iter().map(|vf| lab.host.view().vgpu_type(vf)).collect();
    assert_eq!(have, [Some(1152), Some(1148), Some(1145), Some(1152)]);
    // What would fill it all does not fit any more.
    let whole = typed("whole", &vfs[5], "1156");
    assert_refused(whole.prepare(&lab.manager).await, ErrorName::NoCapacity, &[&vfs[5], "1156", "1152"]);
}

#[tokio::test]
async fn the_lists_of_the_others_change_with_each() {
    let lab = Lab::start(gpu()).await;
    let vfs = lab.vgpus();
    let all = [1145, 1147, 1148, 1152, 1156];
    assert_eq!((lab.creatable(&vfs[0]).await, lab.creatable(&vfs[31]).await), (all.to_vec(), all.to_vec()));
    let vm = typed("vm1", &vfs[0], "1152");
    vm.prepare(&lab.manager).await.unwrap();
    // Its own is short while it has one; the others' say what still goes.
    lab.wait_creatable(&vfs[0], &[]).await;
    for vf in [&vfs[1], &vfs[31]] {
        lab.wait_creatable(vf, &[1152]).await;
    }
    let others: Vec<_> = (1..6).map(|n| typed(&format!("vm{n}"), &vfs[n], "1152")).collect();
    for other in &others {
        other.prepare(&lab.manager).await.unwrap();
    }
    lab.wait_creatable(&vfs[31], &[]).await;
    others[0].release(&lab.manager).await.unwrap();
    lab.wait_creatable(&vfs[31], &[1152]).await;
    for vm in others[1..].iter().chain([&vm]) {
        vm.release(&lab.manager).await.unwrap();
    }
    for vf in &vfs {
        lab.wait_creatable(vf, &all).await;
    }
}

#[tokio::test]
async fn a_managed_hostdev_is_refused() {
    let lab = Lab::start(gpu()).await;
    let vf = &lab.vgpus()[0];
    let managed = |keys: &[(&str, &str)]| has(asks(domain("vm1"), vf, keys), vf, "yes");
    for keys in [&[("vgpu-type", "1152")][..], &[("vgpu-type", "1152"), ("managed", "no")]] {
        assert_refused(managed(keys).prepare(&lab.manager).await, ErrorName::InvalidArgument, &["managed"]);
    }
    // Even without a type in the request: libvirt would bind another driver to it.
    lab.host.set_vgpu_type(vf, 1152).unwrap();
    assert_refused(managed(&[]).prepare(&lab.manager).await, ErrorName::NotSupported, &[vf, "managed='no'"]);
    lab.host.set_vgpu_type(vf, 0).unwrap();
    for keys in [("managed", "yes"), ("driver", "vfio-pci")] {
        let vm = wants_with("vm1", vf, &[("vgpu-type", "1152"), keys]);
        assert_refused(vm.prepare(&lab.manager).await, ErrorName::InvalidArgument, &["vgpu-type"]);
    }
    assert_refused(
        wants_with("vm1", vf, &[("driver", "vfio-pci")]).prepare(&lab.manager).await,
        ErrorName::NotSupported,
        &[vf, "stays on its driver"],
    );
    // Without a type it is of no use to a VM.
    assert_refused(
        wants("vm1", vf).prepare(&lab.manager).await,
        ErrorName::NotSupported,
        &[vf, "needs a vgpu-type", "1152 (NVIDIA L40S-8Q)"],
    );
    let by_hand = lab.function(vf).await.bind("vfio-pci", &none()).await;
    assert_refused(by_hand, ErrorName::NotSupported, &[vf, "stays on its driver"]);
    assert!(lab.function(vf).await.hostdev_xml(&none()).await.unwrap().contains("managed='no'"));
    assert_eq!((lab.host.sys_writes(), claim_files(&lab.host)), (vec![], BTreeSet::new()));
}

#[tokio::test]
async fn the_card_itself_is_not_given_away_under_its_functions() {
    let lab = Lab::start(gpu()).await;
    assert_refused(wants("vm1", GPU).prepare(&lab.manager).await, ErrorName::InUse, &[GPU, "32 virtual functions"]);
    let vf = lab.vgpus()[3].clone();
    typed("vm1", &vf, "1145").prepare(&lab.manager).await.unwrap();
    assert_refused(wants("vm2", GPU).prepare(&lab.manager).await, ErrorName::InUse, &[&vf, "domain 'vm1'"]);
    assert_refused(lab.set_num_vfs(GPU, 0).await, ErrorName::InUse, &[&vf, "domain 'vm1'"]);
    lab.only_types_were_written();
}

#[tokio::test]
async fn a_start_and_a_change_by_hand_do_not_come_between_each_other() {
    let lab = Lab::start(gpu()).await;
    let vfs = lab.vgpus();
    let file = |vf: &str| format!("{}/nvidia/current_vgpu_type", lab.host.function_path(vf));
    let vm = typed("vm1", &vfs[0], "1148");
    // By hand first: nobody is promised it meanwhile.
    let hang = lab.host.fault_at(Point::in_write(file(&vfs[0])), Fault::Hang);
    let by_hand = lab.virtual_function(&vfs[0]).await;
    let asked = tokio::spawn(async move { by_hand.set_vgpu_type(1148, &none()).await });
    eventually("it is being changed", || async { hang.hanging() == 1 }).await;
    assert_refused(vm.prepare(&lab.manager).await, ErrorName::Busy, &[&vfs[0], "try again"]);
    hang.let_go();
    assert!(asked.await.unwrap().unwrap());
    assert!(lab.virtual_function(&vfs[0]).await.set_vgpu_type(0, &none()).await.unwrap());
    // It waits for its turn while the card is at work with another, and the function is promised meanwhile.
    let hang = lab.host.fault_at(Point::in_write(file(&vfs[1])), Fault::Hang);
    let other = lab.virtual_function(&vfs[1]).await;
    let sibling = tokio::spawn(async move { other.set_vgpu_type(1148, &none()).await });
    eventually("the sibling is being changed", || async { hang.hanging() == 1 }).await;
    let looked = lab.host.fault(Op::Read, file(&vfs[0]), Fault::Delay(Duration::ZERO));
    let by_hand = lab.virtual_function(&vfs[0]).await;
    let asked = tokio::spawn(async move { by_hand.set_vgpu_type(1147, &none()).await });
    eventually("it is looked at", || async { looked.hits() > 0 }).await;
    let promised = async {
        eventually("it is promised", || async { lab.claim(&vm).is_some() }).await;
        hang.let_go();
    };
    let (prepared, ()) = tokio::join!(vm.prepare(&lab.manager), promised);
    prepared.unwrap();
    assert!(sibling.await.unwrap().unwrap());
    assert_refused(asked.await.unwrap(), ErrorName::InUse, &[&vfs[0], "domain 'vm1'"]);
    assert_eq!(lab.host.view().vgpu_type(&vfs[0]), Some(1148));
    lab.only_types_were_written();
}

#[tokio::test]
async fn types_by_hand() {
    let lab = Lab::start(gpu()).await;
    let vfs = lab.vgpus();
    let vf = lab.virtual_function(&vfs[0]).await;
    assert!(!vf.set_vgpu_type(0, &none()).await.unwrap());
    assert!(vf.set_vgpu_type(1152, &none()).await.unwrap());
    assert!(!vf.set_vgpu_type(1152, &none()).await.unwrap());
    assert_eq!((vf.vgpu_type().await.unwrap(), lab.host.view().vgpu_type(&vfs[0])), (1152, Some(1152)));
    // From one to another through none.
    assert!(vf.set_vgpu_type(1148, &none()).await.unwrap());
    assert_eq!(lab.host.view().vgpu_type(&vfs[0]), Some(1148));
    let second = lab.virtual_function(&vfs[1]).await;
    let refused = second.set_vgpu_type(1152, &none()).await;
    assert_refused(refused, ErrorName::NoCapacity, &[&vfs[1], "1152", "1148 (NVIDIA L40S-2Q)"]);
    let running = qemu(&lab.host, 4242, &vfs[0]);
    for id in [0, 1148, 1152] {
        let call = vf.set_vgpu_type(id, &none()).await;
        match id {
            1148 => assert!(!call.unwrap()),
            _ => assert_refused(call, ErrorName::InUse, &[&vfs[0], "4242"]),
        }
    }
    running.vanish();
    assert!(vf.set_vgpu_type(0, &none()).await.unwrap());
    let vm = typed("vm1", &vfs[0], "1152");
    vm.prepare(&lab.manager).await.unwrap();
    assert_refused(vf.set_vgpu_type(0, &none()).await, ErrorName::InUse, &["domain 'vm1'"]);
    lab.only_types_were_written();
}
