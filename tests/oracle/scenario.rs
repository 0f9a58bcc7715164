//! A scenario: the content of a policy directory, its changes, and its files.

use std::collections::{BTreeMap, HashMap};

use cedar_pdp::pdp::query::{Record, RequestEntity, Uid};
use cedar_pdp::pdp::settings::Validation;
use cedar_policy::{
    Policy, PolicyId, PolicySet, Schema, SchemaFragment, SlotId, Template, ValidationMode,
    Validator,
};
use serde_json::json;

use crate::policies::{DrawnPolicy, arguments, draw};
use crate::rng::Rng;
use crate::shape::{Attributes, Shape};
use crate::values::{
    ATTRIBUTES, CHAIN, CHAIN_TYPES, IDS, TAGS, TYPES, Ty, cedar_uid, json, other_value, parent_ids,
    string_text, tag_type, uid_text, value,
};

/// Relative path and text.
pub(crate) type Files = BTreeMap<String, String>;

/// Files with policies and templates. Sometimes all are in the first, so that numbers reach ten and
/// ids are sorted as text.
const POLICY_FILES: &[&str] = &["a.cedar", "dir/b.cedar", "dir/more/c.cedar.json", "z.cedar"];

/// Files with entities; a scenario uses some of them.
const ENTITY_FILES: &[&str] = &[
    "entities.json",
    "dir/people.entities.json",
    "dir/more/things.entities.json",
    "zz.entities.json",
];

#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) shape: Shape,
    /// The schema, if the directory has one.
    schema: Option<Schema>,
    validation: Validation,
    policies: Vec<WrittenPolicy>,
    links: Vec<Link>,
    entities: BTreeMap<Uid, RequestEntity>,
    /// Numbers policies and links, so that ids are unique.
    serial: usize,
    /// Decides how files are split and values are written. Unchanged parts are written as before,
    /// so that their files stay the same.
    style: u64,
    /// Entities that are in another file than the style chooses.
    moved: BTreeMap<Uid, usize>,
}

#[derive(Clone, Debug)]
struct WrittenPolicy {
    drawn: DrawnPolicy,
    serial: usize,
    /// The policy has an `@id`.
    named: bool,
    file: &'static str,
}

#[derive(Clone, Debug)]
struct Link {
    serial: usize,
    template: usize,
    principal: Option<Uid>,
    resource: Option<Uid>,
    /// The link is in a `.cedar.json` file instead of a `.links.json` file.
    in_json: bool,
}

impl Scenario {
    pub(crate) fn draw(rng: &mut Rng, validation: Validation) -> Self {
        let shape = Shape::draw(rng);
        let has_schema = match validation {
            Validation::Strict | Validation::Warn => rng.chance(88),
            Validation::Off => rng.chance(50),
        };
        let schema = has_schema.then(|| schema(&shape));
        let mut scenario = Self {
            shape,
            schema,
            validation,
            policies: Vec::new(),
            links: Vec::new(),
            entities: BTreeMap::new(),
            serial: 0,
            style: rng.seed(),
            moved: BTreeMap::new(),
        };
        for _ in 0..rng.between(7, 18) {
            scenario.add_policy(rng);
        }
        for _ in 0..rng.between(0, 8) {
            scenario.add_link(rng);
        }
        for (type_name, _) in TYPES {
            for id in IDS {
                if rng.chance(78) {
                    scenario.store_drawn(rng, Uid::new(*type_name, *id));
                }
            }
        }
        if rng.chance(30) {
            for type_name in CHAIN_TYPES {
                for id in rng.some(CHAIN, 95) {
                    scenario.store_drawn(rng, Uid::new(*type_name, id));
                }
            }
        }
        if rng.chance(15) {
            for written in &mut scenario.policies {
                written.file = POLICY_FILES[0];
            }
        }
        match &scenario.schema {
            None => scenario.store_actions(rng, 70),
            // Stored actions must be the same as in the schema.
            Some(_) if rng.chance(8) => scenario.store_actions(rng, 100),
            Some(_) => {}
        }
        scenario
    }

    /// Returns the next revision, with a few changes.
    pub(crate) fn changed(&self, rng: &mut Rng) -> Self {
        if rng.chance(4) {
            return Self::draw(rng, self.validation);
        }
        let mut scenario = self.clone();
        if rng.chance(20) {
            scenario.style = rng.seed();
        }
        if rng.chance(15) {
            scenario.change_schema(rng);
        }
        for _ in 0..rng.between(0, 3) {
            match rng.below(5) {
                0 => {
                    let at = rng.below(scenario.policies.len());
                    let removed = scenario.policies.remove(at).serial;
                    scenario.links.retain(|link| link.template != removed);
                    scenario.add_policy(rng);
                }
                1 => scenario.add_link(rng),
                2 if !scenario.links.is_empty() => {
                    let at = rng.below(scenario.links.len());
                    scenario.links.remove(at);
                }
                3 => {
                    for written in &mut scenario.policies {
                        if rng.chance(30) {
                            written.file = rng.pick(POLICY_FILES);
                        }
                    }
                }
                _ => {}
            }
        }
        let stored: Vec<Uid> = scenario.entities.keys().cloned().collect();
        // Entities of a whole file, or of several files.
        let removed = rng.chance(10).then(|| rng.below(ENTITY_FILES.len()));
        let share = rng.pick(&[0, 2, 2, 25]);
        for uid in stored {
            if uid.type_name.ends_with("Action") {
                continue;
            }
            if removed == Some(scenario.file_index(&uid)) {
                scenario.entities.remove(&uid);
            } else if rng.chance(share) {
                match rng.below(8) {
                    0 | 1 => {
                        scenario.entities.remove(&uid);
                    }
                    2 => {
                        let file_index = rng.below(ENTITY_FILES.len());
                        scenario.moved.insert(uid, file_index);
                    }
                    _ => scenario.store_drawn(rng, uid),
                }
            }
        }
        scenario
    }

    /// Changes the actions' groups, or optional attributes of contexts and entities. Policies that
    /// no longer validate are replaced.
    fn change_schema(&mut self, rng: &mut Rng) {
        self.shape.change(rng);
        if self.schema.is_some() {
            self.schema = Some(schema(&self.shape));
        }
        let stored = self.entities.keys();
        if stored
            .into_iter()
            .any(|uid| uid.type_name.ends_with("Action"))
        {
            let is_all = self.schema.is_some();
            self.store_actions(rng, if is_all { 100 } else { 70 });
        }
        let remaining: Vec<Link> = std::mem::take(&mut self.links)
            .into_iter()
            .filter(|link| {
                let template = self.policies.iter().find(|w| w.serial == link.template);
                template.is_some_and(|template| self.fits(&template.drawn, Some(link)))
            })
            .collect();
        let (fit, unfit): (Vec<_>, Vec<_>) = std::mem::take(&mut self.policies)
            .into_iter()
            .partition(|written| self.fits(&written.drawn, None));
        self.links = remaining;
        self.links
            .retain(|link| fit.iter().any(|written| written.serial == link.template));
        self.policies = fit;
        for _ in unfit {
            self.add_policy(rng);
        }
    }

    /// Returns the file of an entity.
    fn file_index(&self, uid: &Uid) -> usize {
        let Uid { type_name, id } = uid;
        let file_index = || {
            let files = Rng::named(self.style, "files").between(1, ENTITY_FILES.len());
            Rng::named(self.style, &format!("home of {type_name} {id}")).below(files)
        };
        self.moved.get(uid).copied().unwrap_or_else(file_index)
    }

    /// Returns a random choice that depends on the style alone.
    fn style_choice(&self, name: &str, percent: usize) -> bool {
        Rng::named(self.style, name).chance(percent)
    }

    pub(crate) fn has_schema(&self) -> bool {
        self.schema.is_some()
    }

    /// Returns whether requests are checked against the schema.
    pub(crate) fn validates(&self) -> bool {
        self.has_schema() && self.validation != Validation::Off
    }

    pub(crate) fn stored(&self, uid: &Uid) -> Option<&RequestEntity> {
        self.entities.get(uid)
    }

    /// Returns the schema if all policies must pass the strict validator.
    fn must_validate(&self) -> Option<&Schema> {
        match self.validation {
            Validation::Strict => self.schema.as_ref(),
            Validation::Warn | Validation::Off => None,
        }
    }

    fn store_drawn(&mut self, rng: &mut Rng, uid: Uid) {
        let mut entity = entity(rng, &self.shape, uid);
        if !self.has_schema() && rng.chance(25) {
            entity.attributes = bend_record(rng, &entity.attributes);
        }
        self.store(entity);
    }

    fn store(&mut self, entity: RequestEntity) {
        self.entities.insert(entity.uid.clone(), entity);
    }

    /// Without a schema, only stored action entities can make action groups.
    fn store_actions(&mut self, rng: &mut Rng, percent: usize) {
        for action in self.shape.actions.clone() {
            if rng.chance(percent) {
                let parent = |id: &&str| Uid::new(action.type_name, *id);
                self.store(RequestEntity {
                    uid: action.uid(),
                    attributes: Record::default(),
                    parents: action.groups.iter().map(parent).collect(),
                    tags: Record::default(),
                });
            }
        }
    }

    fn add_policy(&mut self, rng: &mut Rng) {
        let untyped = self.must_validate().is_none();
        let drawn = (0..50)
            .map(|_| draw(rng, &self.shape, untyped))
            .find(|drawn| self.fits(drawn, None))
            .expect("the generator draws policies that validate");
        self.serial += 1;
        self.policies.push(WrittenPolicy {
            drawn,
            serial: self.serial,
            named: rng.chance(50),
            file: rng.pick(POLICY_FILES),
        });
    }

    fn add_link(&mut self, rng: &mut Rng) {
        let templates: Vec<&WrittenPolicy> = self
            .policies
            .iter()
            .filter(|written| written.drawn.is_template())
            .collect();
        if templates.is_empty() {
            return;
        }
        let template = (rng.pick(&templates)).clone();
        for _ in 0..10 {
            let link = Link {
                serial: self.serial + 1,
                template: template.serial,
                principal: None,
                resource: None,
                in_json: rng.chance(30),
            };
            let (principal, resource) = arguments(rng, template.drawn.slots);
            let link = Link {
                principal,
                resource,
                ..link
            };
            if self.fits(&template.drawn, Some(&link)) {
                self.serial += 1;
                self.links.push(link);
                return;
            }
        }
    }

    /// Returns whether the strict validator accepts the policy, where it must.
    fn fits(&self, drawn: &DrawnPolicy, link: Option<&Link>) -> bool {
        let mut set = PolicySet::new();
        if drawn.is_template() {
            let template = Template::parse(Some(PolicyId::new("t")), &drawn.text).unwrap();
            set.add_template(template).unwrap();
            if let Some(link) = link {
                let slots = slots(link);
                if set
                    .link(PolicyId::new("t"), PolicyId::new("l"), slots)
                    .is_err()
                {
                    return false;
                }
            }
        } else {
            set.add(Policy::parse(None, &drawn.text).unwrap_or_else(|e| {
                panic!("{}\n{e:?}", drawn.text);
            }))
            .unwrap();
        }
        let Some(schema) = self.must_validate() else {
            return true;
        };
        Validator::new(schema.clone())
            .validate(&set, ValidationMode::Strict)
            .validation_passed()
    }

    /// Writes the policy directory.
    pub(crate) fn files(&self) -> Files {
        let mut files = Files::new();
        if self.schema.is_some() {
            let [types, rest] = self.shape.schema();
            for (name, text) in [("types", types), ("dir/actions", rest)] {
                match self.style_choice(name, 30) {
                    true => {
                        let (fragment, _) = SchemaFragment::from_cedarschema_str(&text).unwrap();
                        let json = fragment.to_json_string().unwrap();
                        files.insert(format!("{name}.cedarschema.json"), json);
                    }
                    false => {
                        files.insert(format!("{name}.cedarschema"), text);
                    }
                }
            }
        }
        self.write_entities(&mut files);
        self.write_policies(&mut files);
        files
    }

    fn write_entities(&self, files: &mut Files) {
        let mut arrays: [Vec<serde_json::Value>; 4] = Default::default();
        for entity in self.entities.values() {
            let Uid { type_name, id } = &entity.uid;
            let implicit =
                self.has_schema() && self.style_choice(&format!("plain {type_name} {id}"), 40);
            let fields = |record: &Record| -> serde_json::Map<String, serde_json::Value> {
                record
                    .iter()
                    .map(|(name, value)| (name.to_owned(), json(value, implicit)))
                    .collect()
            };
            let uid = |uid: &Uid| json!({"type": uid.type_name, "id": uid.id});
            let mut written = json!({
                "uid": uid(&entity.uid),
                "attrs": fields(&entity.attributes),
                "parents": entity.parents.iter().map(uid).collect::<Vec<_>>(),
            });
            if !entity.tags.is_empty() {
                written["tags"] = fields(&entity.tags).into();
            }
            arrays[self.file_index(&entity.uid)].push(written);
        }
        for (name, array) in ENTITY_FILES.iter().zip(arrays) {
            if !array.is_empty() || self.style_choice(name, 30) {
                let text = serde_json::to_string_pretty(&array).unwrap();
                files.insert((*name).to_owned(), text);
            }
        }
    }

    fn write_policies(&self, files: &mut Files) {
        let mut templates: HashMap<usize, String> = HashMap::new();
        let mut policy_sets: BTreeMap<&str, serde_json::Value> = BTreeMap::new();
        for file in POLICY_FILES {
            let here = self.policies.iter().filter(|written| written.file == *file);
            let mut text = String::from("// Policies and templates, numbered from 0.\n");
            let mut set = json!({"staticPolicies": {}, "templates": {}, "templateLinks": []});
            for (number, written) in here.enumerate() {
                let mut id = format!("{file}#{number}");
                // The oracle checks its own numbering against this.
                let mut annotations = format!("@ordinal(\"{number}\")\n");
                if written.named || file.ends_with(".json") {
                    id = match written.serial % 7 {
                        0 => format!("p\"{}\" é", written.serial),
                        _ => format!("p{}", written.serial),
                    };
                }
                if written.named {
                    // In JSON `@id` is an ordinary annotation, so here it names another id.
                    let text = match file.ends_with(".json") {
                        true => "p1".to_owned(),
                        false => id.clone(),
                    };
                    annotations.push_str(&format!("@id({})\n", string_text(&text)));
                }
                let policy = format!("{annotations}{}\n", written.drawn.text);
                if file.ends_with(".json") {
                    let (kind, json) = match written.drawn.is_template() {
                        true => (
                            "templates",
                            Template::parse(None, &policy).unwrap().to_json(),
                        ),
                        false => (
                            "staticPolicies",
                            Policy::parse(None, &policy).unwrap().to_json(),
                        ),
                    };
                    set[kind][&id] = json.unwrap();
                } else {
                    text.push_str(&policy);
                }
                templates.insert(written.serial, id);
            }
            if file.ends_with(".json") {
                policy_sets.insert(file, set);
            } else {
                files.insert((*file).to_owned(), text);
            }
        }

        let mut links = Vec::new();
        for link in &self.links {
            let template = &templates[&link.template];
            let id = format!("link{}", link.serial);
            let mut arguments = serde_json::Map::new();
            for (slot, uid) in [
                ("?principal", &link.principal),
                ("?resource", &link.resource),
            ] {
                if let Some(uid) = uid {
                    arguments.insert(
                        slot.to_owned(),
                        match link.in_json {
                            true => json!({"__entity": {"type": uid.type_name, "id": uid.id}}),
                            false => json!(uid_text(uid)),
                        },
                    );
                }
            }
            if link.in_json {
                for set in policy_sets.values_mut() {
                    if let Some(links) = set["templateLinks"].as_array_mut() {
                        links.push(
                            json!({"templateId": template, "newId": id, "values": arguments}),
                        );
                    }
                }
            } else {
                links.push(json!({"template_id": template, "link_id": id, "args": arguments}));
            }
        }
        for (file, set) in policy_sets {
            files.insert(file.to_owned(), serde_json::to_string_pretty(&set).unwrap());
        }
        if !links.is_empty() || self.style_choice("a file for no links", 50) {
            // Before or after the files of its templates.
            let name = if self.style_choice("links come first", 50) {
                "0.links.json"
            } else {
                "zz/all.links.json"
            };
            files.insert(
                name.to_owned(),
                serde_json::to_string_pretty(&links).unwrap(),
            );
        }
    }
}

fn schema(shape: &Shape) -> Schema {
    let [types, rest] = shape.schema();
    let (schema, _) = Schema::from_cedarschema_str(&format!("{types}{rest}")).unwrap();
    schema
}

fn slots(link: &Link) -> HashMap<SlotId, cedar_policy::EntityUid> {
    let principal = link.principal.iter().map(|uid| (SlotId::principal(), uid));
    let resource = link.resource.iter().map(|uid| (SlotId::resource(), uid));
    principal
        .chain(resource)
        .map(|(slot, uid)| (slot, cedar_uid(uid).unwrap()))
        .collect()
}

/// Draws an entity of this shape.
pub(crate) fn entity(rng: &mut Rng, shape: &Shape, uid: Uid) -> RequestEntity {
    let attributes = record(rng, &shape.attributes(&uid.type_name), ATTRIBUTES);
    let mut parents = Vec::new();
    let chain_index = CHAIN.iter().position(|known| *known == uid.id);
    for (type_name, parent_types) in TYPES {
        if *type_name != uid.type_name || parent_types.is_empty() {
            continue;
        }
        if let Some(chain_index) = chain_index {
            let next = &CHAIN[chain_index + 1..CHAIN.len().min(chain_index + 4)];
            for id in rng.some(next, 60) {
                parents.push(Uid::new(*type_name, id));
            }
        }
        for _ in 0..rng.below(3) {
            let parent_type = rng.pick(parent_types);
            let ids = match parent_type == uid.type_name {
                true => parent_ids(&uid.id),
                false => IDS,
            };
            if !ids.is_empty() {
                parents.push(Uid::new(parent_type, rng.pick(ids)));
            }
            if chain_index.is_none() && CHAIN_TYPES.contains(&parent_type) && rng.chance(15) {
                parents.push(Uid::new(parent_type, rng.pick(&CHAIN[..3])));
            }
        }
    }
    parents.sort();
    parents.dedup();
    let mut tags = BTreeMap::new();
    if shape.has_tags(&uid.type_name) {
        for tag in rng.some(TAGS, 50) {
            tags.insert(tag.to_owned(), value(rng, tag_type(&uid.type_name)));
        }
    }
    RequestEntity {
        uid,
        attributes,
        parents,
        tags: tags.into(),
    }
}

/// Draws values for these attributes, including some optional ones.
pub(crate) fn record(rng: &mut Rng, attributes: &Attributes, types: &[(&str, Ty)]) -> Record {
    let mut fields = BTreeMap::new();
    for (name, required) in attributes {
        if !required && rng.chance(50) {
            continue;
        }
        if let Some((_, ty)) = types.iter().find(|(known, _)| known == name) {
            fields.insert((*name).to_owned(), value(rng, *ty));
        }
    }
    fields.into()
}

/// Removes a field, adds one, or changes the type of one.
pub(crate) fn bend_record(rng: &mut Rng, record: &Record) -> Record {
    let mut fields: BTreeMap<String, _> = record
        .iter()
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect();
    let names: Vec<String> = fields.keys().cloned().collect();
    match rng.below(3) {
        0 if !names.is_empty() => {
            fields.remove(&rng.pick(&names));
        }
        1 => {
            fields.insert("surplus".to_owned(), value(rng, Ty::Long));
        }
        _ => {
            let (name, ty) = rng.pick(ATTRIBUTES);
            let name = match names.is_empty() {
                true => name.to_owned(),
                false => rng.pick(&names),
            };
            fields.insert(name, other_value(rng, ty));
        }
    }
    fields.into()
}
