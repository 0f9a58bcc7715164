//! Draws conditions: paths through entities, records, tags and context, and tests of their values.
//!
//! Typed conditions guard each step with `is` and `has`, so that Cedar's strict validator accepts
//! nearly all of them; only a missing entity or an overflow can fail. Untyped ones leave guards out
//! and mix types.

use cedar_pdp::pdp::query::Value;

use crate::rng::Rng;
use crate::shape::Shape;
use crate::values::{
    ATTRIBUTES, CONTEXT, PRINCIPALS, RECORD, RESOURCES, TAGS, Ty, literal, string_text, tag_type,
    uid, uid_text, value,
};

pub(crate) struct Conditions<'a> {
    pub(crate) rng: &'a mut Rng,
    pub(crate) shape: &'a Shape,
    pub(crate) untyped: bool,
}

/// An expression, its type, and the guards that make it well typed.
struct Path {
    guards: Vec<String>,
    text: String,
    ty: Ty,
}

impl Conditions<'_> {
    /// Draws `when` and `unless` clauses, often none.
    pub(crate) fn clauses(&mut self) -> String {
        let count = self.rng.pick(&[0, 1, 1, 1, 1, 2, 2, 3]);
        (0..count)
            .map(|_| {
                let kind = self.rng.pick(&["when", "when", "unless"]);
                let condition = match kind {
                    "when" if self.rng.chance(35) => self.condition_with_leads(),
                    _ => self.condition(2),
                };
                format!(" {kind} {{ {condition} }}")
            })
            .collect()
    }

    /// Draws a condition whose `&&` begins with operands that could also be part of the scope.
    fn condition_with_leads(&mut self) -> String {
        let mut operands: Vec<String> = (0..self.rng.between(1, 3))
            .map(|_| self.scope_like_operand())
            .collect();
        // An operand that can fail comes first: the operands before it decide whether the failure
        // is visible.
        for _ in 0..self.rng.pick(&[0, 1, 1, 2]) {
            let at = self.rng.below(operands.len() + 1);
            let operand = self.operand(2);
            operands.insert(at, operand);
        }
        let mut text = operands.pop().unwrap_or_default();
        while let Some(operand) = operands.pop() {
            text = match self.rng.below(12) {
                0 => format!("{operand} || {text}"),
                1 => format!("({operand} && {text})"),
                2 | 3 => format!("{operand} && ({text})"),
                _ => format!("{operand} && {text}"),
            };
        }
        text
    }

    /// Draws a constraint on a variable of the request.
    fn scope_like_operand(&mut self) -> String {
        if self.rng.chance(15) {
            return self.action_test();
        }
        let (variable, type_name) = self.entity_variable();
        let parent_ids = match type_name {
            "User" => &["Group", "Group", "Org"] as &[&'static str],
            "Group" => &["Group", "Org"],
            _ => &["Folder", "Folder", "Folder"],
        };
        let own = self.uid_text(type_name);
        let types: [&'static str; 2] = [self.rng.pick(parent_ids), self.rng.pick(parent_ids)];
        let [one, other] = types.map(|parent_ids| self.uid_text(parent_ids));
        match self.rng.below(14) {
            0 | 1 => format!("{variable} == {own}"),
            2 => format!("{own} == {variable}"),
            3 => format!("{variable} != {own}"),
            4 | 5 => format!("{variable} is {type_name}"),
            6 => format!("{variable} is {type_name} in {one}"),
            7 => format!("{variable} in [{one}, {other}]"),
            8 => format!("{variable} in [{one}, {variable}]"),
            9 => format!("!({variable} in {one})"),
            10 if self.untyped => (self.rng.pick(&[
                "principal in []",
                "resource in [] || true",
                "action in Group::\"a\"",
                "action is User",
                "action == User::\"a\"",
                "principal in [Group::\"a\", 1]",
                "User::\"a\" in Group::\"a\"",
                "principal == resource",
                "context in Group::\"a\"",
                "principal is Ghost",
            ]))
            .to_owned(),
            _ => format!("{variable} in {one}"),
        }
    }

    fn uid_text(&mut self, type_name: &str) -> String {
        uid_text(&uid(self.rng, type_name))
    }

    fn condition(&mut self, depth: usize) -> String {
        if depth == 0 {
            return self.atom();
        }
        match self.rng.below(10) {
            0..=4 => self.atom(),
            5 => format!("{} && {}", self.operand(depth), self.operand(depth)),
            6 | 7 => format!("{} || {}", self.operand(depth), self.operand(depth)),
            8 => format!("!{}", self.operand(depth)),
            _ => format!(
                "if {} then {} else {}",
                self.operand(depth),
                self.operand(depth),
                self.operand(depth)
            ),
        }
    }

    fn operand(&mut self, depth: usize) -> String {
        format!("({})", self.condition(depth - 1))
    }

    fn atom(&mut self) -> String {
        match self.rng.below(24) {
            0 => return self.action_test(),
            1 => return "true".to_owned(),
            // Fails for every request if the entity exists, which the validator cannot know.
            2..=4 => return self.overflow(),
            5 if self.untyped => {
                return (self.rng.pick(&[
                    "principal.nonsense",
                    "context.nonsense.more",
                    "1 + \"x\" == 2",
                    "ip(\"no address\").isIpv4()",
                    "User::\"a\"",
                    "context == resource",
                    "principal == {x: 1}",
                    "resource in context",
                    "[1, \"x\", principal].contains(resource)",
                    "decimal(context.key) == decimal(\"1.5\")",
                    "{a: principal}.a in Org::\"a\"",
                    "context has profile.boss && context.profile.boss has level",
                ]))
                .to_owned();
            }
            _ => {}
        }
        let path = self.path();
        let mut guards = path.guards;
        if self.rng.chance(6)
            && let Some(has) = guards.pop()
        {
            // The guard itself is the test: nothing else reads the entities on its path.
            guards.push(has);
            return guards.join(" && ");
        }
        let test = self.test(&path.text, path.ty, &mut guards);
        if self.untyped {
            guards.retain(|_| self.rng.chance(60));
        }
        guards.push(test);
        guards.join(" && ")
    }

    fn action_test(&mut self) -> String {
        let action = uid_text(&self.rng.pick(&self.shape.actions).uid());
        let operator = self.rng.pick(&["==", "in", "in", "!="]);
        format!("action {operator} {action}")
    }

    /// Adds a tag of a principal or resource to a path.
    fn tag_path(&mut self) -> Path {
        let (variable, type_name) = self.entity_variable();
        let key = match self.rng.below(4) {
            0 if self.untyped => "context.key".to_owned(),
            _ => string_text(self.rng.pick(TAGS)),
        };
        Path {
            guards: vec![
                format!("{variable} is {type_name}"),
                format!("{variable}.hasTag({key})"),
            ],
            text: format!("{variable}.getTag({key})"),
            ty: tag_type(type_name),
        }
    }

    fn overflow(&mut self) -> String {
        let operation = self.rng.pick(&[
            "9223372036854775807 + {} > 0",
            "{} * 4611686018427387905 >= 0",
            "-9223372036854775808 - {} < 0",
        ]);
        let mut path = self.path();
        for _ in 0..6 {
            if path.ty == Ty::Long {
                break;
            }
            path = self.path();
        }
        if path.ty != Ty::Long {
            let (variable, type_name) = self.entity_variable();
            let operand = format!("(if {variable} is {type_name} then 2 else 0)");
            return operation.replace("{}", &operand);
        }
        path.guards.push(operation.replace("{}", &path.text));
        path.guards.join(" && ")
    }

    fn entity_variable(&mut self) -> (&'static str, &'static str) {
        match self.rng.chance(50) {
            true => ("principal", self.rng.pick(PRINCIPALS)),
            false => ("resource", self.rng.pick(RESOURCES)),
        }
    }

    fn path(&mut self) -> Path {
        let mut path = match self.rng.below(12) {
            0..=6 => {
                let (variable, type_name) = self.entity_variable();
                Path {
                    guards: vec![format!("{variable} is {type_name}")],
                    text: variable.to_owned(),
                    ty: Ty::Entity(type_name),
                }
            }
            7 | 8 => self.context_path(),
            9 | 10 => self.tag_path(),
            _ => {
                let type_name = self.rng.pick(&["User", "Doc", "Folder"]);
                Path {
                    guards: Vec::new(),
                    text: uid_text(&uid(self.rng, type_name)),
                    ty: Ty::Entity(type_name),
                }
            }
        };
        for _ in 0..self.rng.pick(&[3, 3, 3, 5]) {
            if self.rng.chance(8) {
                self.wrap(&mut path);
            }
            if self.rng.chance(12) || !self.step(&mut path) {
                break;
            }
        }
        path
    }

    /// Puts the value into a record or a branch, and takes it out again.
    fn wrap(&mut self, path: &mut Path) {
        let text = &path.text;
        let test = match self.rng.below(3) {
            0 => self.action_test(),
            1 => format!("principal == {}", self.uid_text("User")),
            _ => format!("resource is {}", self.rng.pick(RESOURCES)),
        };
        path.text = match self.rng.below(5) {
            0 => format!("{{a: {text}, \"b c\": 1}}.a"),
            1 => format!("{{a: {{b: {text}}}}}.a.b"),
            2 => format!("(if {test} then {{a: {text}}} else {{a: {text}}}).a"),
            3 => {
                let Ty::Entity(type_name) = path.ty else {
                    return;
                };
                let other = self.uid_text(type_name);
                match self.rng.chance(50) {
                    true => format!("(if {test} then {other} else {text})"),
                    false => format!("(if {test} then {text} else {other})"),
                }
            }
            _ => format!("(if {test} then {text} else {text})"),
        };
    }

    fn context_path(&mut self) -> Path {
        let actions = self.shape.leaves();
        let (action, applies) = self.rng.pick(&actions);
        let required: Vec<&str> = applies
            .context
            .iter()
            .filter_map(|(name, required)| required.then_some(*name))
            .collect();
        if !required.is_empty() && self.rng.chance(40) {
            let name = self.rng.pick(&required);
            let ty = CONTEXT.iter().find(|(known, _)| *known == name).unwrap().1;
            return Path {
                guards: vec![format!("action == {}", uid_text(&action.uid()))],
                text: format!("context.{name}"),
                ty,
            };
        }
        let (name, ty) = self.rng.pick(CONTEXT);
        Path {
            guards: vec![format!("context has {name}")],
            text: format!("context.{name}"),
            ty,
        }
    }

    /// Adds an attribute or field to the path, if there is any.
    fn step(&mut self, path: &mut Path) -> bool {
        let (name, ty, required) = match path.ty {
            Ty::Entity(type_name) if self.shape.has_tags(type_name) && self.rng.chance(12) => {
                let key = string_text(self.rng.pick(TAGS));
                path.guards.push(format!("{}.hasTag({key})", path.text));
                path.text = format!("{}.getTag({key})", path.text);
                path.ty = tag_type(type_name);
                return true;
            }
            Ty::Entity(type_name) => {
                let declared: Vec<(&str, bool)> =
                    self.shape.attributes(type_name).into_iter().collect();
                let (name, required) = if declared.is_empty() || self.untyped && self.rng.chance(10)
                {
                    if !self.untyped {
                        return false;
                    }
                    (self.rng.pick(ATTRIBUTES).0, false)
                } else {
                    // A required attribute needs no guard, and fails if the entity is missing.
                    let required: Vec<(&str, bool)> =
                        declared.iter().filter(|(_, r)| *r).copied().collect();
                    if required.is_empty() || self.rng.chance(30) {
                        self.rng.pick(&declared)
                    } else {
                        self.rng.pick(&required)
                    }
                };
                let ty = ATTRIBUTES
                    .iter()
                    .find(|(known, _)| *known == name)
                    .unwrap()
                    .1;
                (name, ty, required)
            }
            Ty::Record => self.rng.pick(RECORD),
            Ty::Bool
            | Ty::Long
            | Ty::String
            | Ty::Set(_)
            | Ty::Decimal
            | Ty::Ip
            | Ty::Datetime
            | Ty::Duration => return false,
        };
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !required || self.rng.chance(15) {
            let name = if plain {
                name.to_owned()
            } else {
                string_text(name)
            };
            let chain = path.guards.last().and_then(|guard| {
                // `x has a` and then `x.a has b` is `x has a.b`.
                let (holder, names) = guard.split_once(" has ")?;
                let ends_here = format!("{holder}.{names}") == path.text;
                ends_here.then(|| format!("{guard}.{name}"))
            });
            match chain {
                Some(chain) if plain && self.rng.chance(60) => path.guards.push(chain),
                _ => path.guards.push(format!("{} has {name}", path.text)),
            }
        }
        path.text = match plain {
            true => format!("{}.{name}", path.text),
            false => format!("{}[{}]", path.text, string_text(name)),
        };
        path.ty = ty;
        true
    }

    fn literal(&mut self, ty: Ty) -> String {
        let mut drawn = value(self.rng, ty);
        // The validator rejects an empty set literal.
        while matches!(&drawn, Value::Set(members) if members.is_empty()) {
            drawn = value(self.rng, ty);
        }
        literal(&drawn)
    }

    /// Draws an operand of type `ty` to compare with: mostly a literal.
    fn other(&mut self, ty: Ty, guards: &mut Vec<String>) -> String {
        if self.untyped && self.rng.chance(8) {
            let ty = self.rng.pick(ATTRIBUTES).1;
            return self.literal(ty);
        }
        if self.rng.chance(30) {
            for _ in 0..8 {
                let path = self.path();
                if path.ty == ty {
                    guards.extend(path.guards);
                    return path.text;
                }
            }
        }
        self.literal(ty)
    }

    fn test(&mut self, text: &str, ty: Ty, guards: &mut Vec<String>) -> String {
        match ty {
            Ty::Bool => (self.rng.pick(&["{}", "{} == true", "!{}"])).replace("{}", text),
            Ty::Long => {
                let operator = self.rng.pick(&["<", "<=", ">", ">=", "==", "!=", ">", "<"]);
                let other = self.other(ty, guards);
                let form = self
                    .rng
                    .pick(&["{}", "{}", "{}", "{} + 1", "{} * 2", "-{}", "{} - 3"]);
                format!("{} {operator} {other}", form.replace("{}", text))
            }
            Ty::String => match self.rng.below(3) {
                0 => format!(
                    "{text} like \"{}\"",
                    self.rng.pick(&["x*", "*", "*y*", "1.*", "\\*"])
                ),
                1 => format!("{text} != {}", self.other(ty, guards)),
                _ => format!("{text} == {}", self.other(ty, guards)),
            },
            Ty::Entity(type_name) => self.entity_test(text, type_name, guards),
            Ty::Set(member) => match self.rng.below(6) {
                0 => format!("{text}.isEmpty()"),
                1 => format!("{text}.containsAll({})", self.other(ty, guards)),
                2 => format!("{text}.containsAny({})", self.other(ty, guards)),
                3 => format!("{text} == {}", self.other(ty, guards)),
                _ => format!("{text}.contains({})", self.other(*member, guards)),
            },
            Ty::Record => match self.untyped {
                true => format!("{text} == {}", self.other(ty, guards)),
                false => format!("{text}.rank > {text}.rank - 1"),
            },
            Ty::Decimal => {
                let other = self.other(ty, guards);
                let test =
                    self.rng
                        .pick(&["{}.lessThan(%)", "{}.greaterThanOrEqual(%)", "{} == %"]);
                test.replace('%', &other).replace("{}", text)
            }
            Ty::Ip => {
                let other = self.other(ty, guards);
                let test = self
                    .rng
                    .pick(&["{}.isInRange(%)", "{}.isIpv4()", "{} == %"]);
                test.replace('%', &other).replace("{}", text)
            }
            Ty::Datetime => {
                let other = self.other(ty, guards);
                let test = self.rng.pick(&[
                    "{} < %",
                    "{} >= %",
                    "{}.offset(duration(\"1d\")) > %",
                    "{}.toDate() == %",
                    "{}.durationSince(%) < duration(\"100d\")",
                ]);
                test.replace('%', &other).replace("{}", text)
            }
            Ty::Duration => {
                let other = self.other(ty, guards);
                let test = self
                    .rng
                    .pick(&["{} < %", "{} == %", "{}.toHours() >= 1", "{} >= %"]);
                test.replace('%', &other).replace("{}", text)
            }
        }
    }

    fn entity_test(
        &mut self,
        text: &str,
        type_name: &'static str,
        guards: &mut Vec<String>,
    ) -> String {
        let parent_ids = match type_name {
            "User" => "Group",
            "Doc" | "Shop::Order" => "Folder",
            "Tier" => return format!("{text} == {}", self.literal(Ty::Entity("Tier"))),
            same => same,
        };
        match self.rng.below(10) {
            0 => format!("{text} == {}", self.other(Ty::Entity(type_name), guards)),
            1 => format!("{text} in {}", self.literal(Ty::Entity("Org"))),
            2 => format!(
                "{text} in {}",
                self.other(Ty::Set(&Ty::Entity("Group")), guards)
            ),
            3 => format!(
                "{text} is {type_name} in {}",
                self.literal(Ty::Entity(parent_ids))
            ),
            4..=6 => {
                let (one, other) = (
                    self.literal(Ty::Entity(parent_ids)),
                    self.literal(Ty::Entity(parent_ids)),
                );
                format!("{text} in [{one}, {other}]")
            }
            _ => format!("{text} in {}", self.other(Ty::Entity(parent_ids), guards)),
        }
    }
}
