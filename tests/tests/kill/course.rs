//! What is being done when the daemon dies: a domain's `prepare` and `release` as libvirt's hook makes them, or a device made and removed
//! by hand.

use std::collections::{BTreeSet, HashMap};

use mdevd_core::claim::{Claim, Grant};
use mdevd_dbus::{ClaimProxy, path};
use mdevd_tests::harness::Domain;
use uuid::Uuid;
use zbus::proxy::CacheProperties;

use super::stage::Stage;

/// One of two ways to ask for devices.
#[derive(Debug, Clone)]
pub enum Course {
    /// `PrepareDomain` and `ReleaseDomain`.
    Domain(Domain),
    /// `CreateMdev` and the claim's `Release`.
    ByHand {
        /// The device.
        uuid: Uuid,
        /// Its type.
        mdev_type: &'static str,
        /// What is set after it is made.
        attributes: Vec<(&'static str, &'static str)>,
    },
}

impl Course {
    /// Asks for the devices.
    pub async fn make(&self, stage: &Stage) -> zbus::Result<()> {
        match self {
            Self::Domain(domain) => {
                let (uuid, options) = (domain.uuid.to_string(), stage.options());
                let call =
                    stage.manager.prepare_domain(&uuid, &domain.name, &domain.requests, &domain.hostdevs, &options);
                call.await.map(drop)
            }
            Self::ByHand { uuid, mdev_type, attributes } => {
                let options = HashMap::from([("uuid", uuid.to_string().into()), ("attrs", attributes.clone().into())]);
                stage.manager.create_mdev(mdev_type, &options).await.map(drop)
            }
        }
    }

    /// Gives them back, as the one whose claim this is.
    pub async fn end(&self, stage: &Stage, claim: &Claim) -> zbus::Result<()> {
        match self {
            Self::Domain(domain) => {
                let run = claim.run.to_string();
                let options = HashMap::from([("reason", "destroyed".into()), ("run", run.into())]);
                stage.manager.release_domain(&domain.uuid.to_string(), &options).await.map(drop)
            }
            Self::ByHand { .. } => {
                let builder = ClaimProxy::builder(&stage.connection).path(path::claim(claim.id));
                let proxy = builder.cache_properties(CacheProperties::No).build().await?;
                proxy.release(&HashMap::new()).await.map(drop)
            }
        }
    }

    /// Gives back whatever claim there is.
    pub async fn end_if_there(&self, stage: &Stage) {
        if let Some(claim) = self.claim(stage) {
            self.end(stage, &claim).await.unwrap();
        }
    }

    /// The devices that it asks for.
    pub fn devices(&self) -> BTreeSet<Uuid> {
        match self {
            Self::Domain(domain) => domain.mdevs.iter().copied().collect(),
            Self::ByHand { uuid, .. } => BTreeSet::from([*uuid]),
        }
    }

    /// Its claim on disk.
    pub fn claim(&self, stage: &Stage) -> Option<Claim> {
        let devices = self.devices();
        let of_this =
            |claim: &Claim| claim.grants.iter().filter_map(Grant::mdev).any(|mdev| devices.contains(&mdev.uuid.0));
        stage.claims().into_iter().find(of_this)
    }

    /// Its claim on disk, which holds exactly the devices that it asks for.
    pub fn whole_claim(&self, stage: &Stage) -> Claim {
        let claim = self.claim(stage).unwrap_or_else(|| panic!("{self:?} has no claim"));
        let has: BTreeSet<Uuid> = claim.grants.iter().filter_map(Grant::mdev).map(|mdev| mdev.uuid.0).collect();
        assert_eq!(has, self.devices(), "{claim:?}");
        claim
    }

    /// Whether libvirt is behind it, which says when a run has ended.
    pub fn is_domain(&self) -> bool {
        matches!(self, Self::Domain(_))
    }
}
