//! Lists of domains, a part at a time.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::snapshot::{app_name, domain_key, owner_of};
use crate::engine::Engine;

/// Domains, or numbers of deleted ones, that are looked at for one part: others wait for the engine meanwhile.
const PART: usize = 512;

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainFacts {
    /// Name of its app.
    pub app: String,
    /// Its key.
    pub key: String,
    /// Pages that it has addresses for.
    pub pages: u32,
    /// Pages that are sealed.
    pub sealed_pages: u32,
    /// Whether each sealed page has a second copy.
    pub mirrored: bool,
    /// Sealed pages whose content is lost.
    pub damaged_pages: u32,
    /// The newest of its incidents that are kept.
    pub last_incident: Option<u64>,
}

/// Where a list goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainPosition {
    /// Number of the app.
    pub app: u32,
    /// Number of the domain; there may be none.
    pub domain: u32,
}

/// A part of a list of domains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainList {
    /// Domains, in the order of their apps and numbers.
    pub domains: Vec<DomainFacts>,
    /// Where the next part starts, if there is one.
    pub next: Option<DomainPosition>,
}

/// Domains of one app, or of all, from a position on.
pub(crate) fn part(engine: &Engine, only: Option<u32>, from: DomainPosition) -> DomainList {
    let (store, incidents) = (engine.store(), engine.incidents());
    let mut newest = HashMap::new();
    for incident in incidents.iter() {
        if let Some(owner) = owner_of(incident) {
            newest.insert(owner, incident.number);
        }
    }
    let facts = |position: DomainPosition| {
        let DomainPosition { app, domain } = position;
        let store_app = store.apps.get(app as usize)?;
        let exists = store_app.has_domain(domain);
        exists.then(|| DomainFacts {
            app: app_name(store, app).unwrap_or_default(),
            key: domain_key(store, app, domain).unwrap_or_default(),
            pages: store_app.domain_pages(domain),
            sealed_pages: store_app.domain_size(domain).1,
            mirrored: store_app.is_mirrored(domain),
            damaged_pages: store_app.damaged(domain),
            last_incident: newest.get(&(app, domain)).copied(),
        })
    };
    let mut places = places(engine, only, from);
    let domains = places.by_ref().take(PART).filter_map(facts).collect();
    DomainList {
        domains,
        next: places.next(),
    }
}

/// All places of domains, from one on.
fn places(
    engine: &Engine,
    only: Option<u32>,
    from: DomainPosition,
) -> impl Iterator<Item = DomainPosition> {
    let apps = engine.store().apps.iter().enumerate();
    // At most `MAX_APPS`.
    let apps = apps.map(|(number, app)| (number as u32, app));
    apps.filter(move |&(number, _)| only.is_none_or(|only| only == number) && number >= from.app)
        .flat_map(move |(app, facts)| {
            let first = if app == from.app { from.domain } else { 0 };
            (first..facts.domains()).map(move |domain| DomainPosition { app, domain })
        })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytemuck::Zeroable;
    use vmsrs_protocol::NONE;
    use vmsrs_protocol::control::{DOMAIN_MIRROR, DeleteRecord, OpenApp, OpenDomain};
    use vmsrs_protocol::incident::{IncidentReport, KIND_PANIC};

    use super::*;
    use crate::engine::EngineConfig;
    use crate::engine::mock::MockMemory;

    /// Domains of the first app; the second one has one.
    const MANY: u32 = 2 * PART as u32;

    fn app(name: &str) -> OpenApp {
        let mut message = OpenApp::zeroed();
        message.name[..name.len()].copy_from_slice(name.as_bytes());
        message
    }

    fn domain(app: u32, key: &str) -> OpenDomain {
        let mut message = OpenDomain {
            app,
            key_length: key.len() as u32,
            reuse: NONE,
            pages: 4,
            ..OpenDomain::zeroed()
        };
        message.key[..key.len()].copy_from_slice(key.as_bytes());
        message
    }

    fn engine(config: EngineConfig) -> Engine {
        let mut engine = Engine::new(config).unwrap();
        for name in ["ledger", "cache"] {
            engine.open_app(&app(name)).unwrap();
        }
        for number in 0..MANY {
            engine
                .open_domain(&domain(0, &format!("user-{number}")))
                .unwrap();
        }
        let mirrored = OpenDomain {
            flags: DOMAIN_MIRROR,
            ..domain(1, "shard")
        };
        engine.open_domain(&mirrored).unwrap();
        engine
    }

    fn all(engine: &Engine, only: Option<u32>) -> (Vec<DomainFacts>, usize) {
        let (mut domains, mut parts, mut from) = (Vec::new(), 0, Some(DomainPosition::default()));
        while let Some(position) = from {
            let part = part(engine, only, position);
            domains.extend(part.domains);
            (parts, from) = (parts + 1, part.next);
        }
        (domains, parts)
    }

    #[test]
    fn each_domain_is_in_one_part() {
        let engine = engine(EngineConfig::for_frames(1 << 14));
        let (domains, parts) = all(&engine, None);
        assert_eq!((domains.len(), parts), (MANY as usize + 1, 3));
        let keys: Vec<_> = domains.iter().map(|domain| domain.key.as_str()).collect();
        assert_eq!(
            (keys[0], keys[1], keys[MANY as usize]),
            ("user-0", "user-1", "shard")
        );
        assert_eq!(all(&engine, Some(0)).0, domains[..MANY as usize]);
        assert_eq!(all(&engine, Some(1)).0, domains[MANY as usize..]);
        assert!(domains[MANY as usize].mirrored && !domains[0].mirrored);
        assert_eq!((domains[0].app.as_str(), domains[0].pages), ("ledger", 4));
        // Whatever a client asks for.
        for app in [0, 1, 2, u32::MAX] {
            let from = DomainPosition {
                app,
                domain: u32::MAX,
            };
            part(&engine, None, from);
        }
    }

    #[test]
    fn deleted_domains_are_left_out_and_the_newest_incident_is_told() {
        let config = EngineConfig::for_frames(1 << 14);
        let mut memory = MockMemory::new(&config);
        let mut engine = engine(config);
        for incident in [1, 3] {
            let report = IncidentReport {
                incident,
                kind: KIND_PANIC,
                app: 0,
                domain: 2,
                ..IncidentReport::default()
            };
            engine
                .report(Duration::ZERO, &report, &[], &memory)
                .unwrap();
        }
        engine
            .delete(&[DeleteRecord {
                app: 0,
                domain: 1,
                extents: NONE,
                reserved: 0,
            }])
            .unwrap();
        engine
            .seal(
                Duration::ZERO,
                &[],
                vmsrs_protocol::seal::SEAL_LAST,
                &mut memory,
            )
            .unwrap();
        let (domains, _) = all(&engine, Some(0));
        assert_eq!(domains.len(), MANY as usize - 1);
        assert_eq!(domains[1].key, "user-2");
        assert_eq!(
            (domains[0].last_incident, domains[1].last_incident),
            (None, Some(3))
        );
    }
}
