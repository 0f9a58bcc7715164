//! Plain conditions, each written in one piece of bytes.
//!
//! A condition as Cedar holds it is a tree, each of its parts an allocation of its own, and among
//! a hundred thousand policies none of them is in the processor's caches. What `shortcut` needs of
//! a condition is written here once, when the policy is loaded: operators before their operands,
//! entities and types by number, names and literals in place. The index lays these pieces beside
//! the scopes, so that a candidate is read from front to back.
//!
//! What has no form here stands as [`Node::Fallback`], and Cedar is asked when it comes to that.

use std::sync::Arc;

use cedar_policy_core::ast::{
    BinaryOp, EntityType, EntityUID, Expr, ExprKind, Literal, PatternElem, UnaryOp, Var,
};

use super::cursor::{ByteCursor, piece};
use crate::pdp::entities::interner::{TooManyUids, TypeId, UidId, UidInterner};

/// A condition longer than this is left to Cedar: links of one template have each their own.
const MAX_BYTES: usize = 4_096;

/// A condition, or a part of one, in shorthand.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct Bytecode<'a>(ByteCursor<'a>);

/// A part of a condition, its own parts still in shorthand.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) enum Node<'a> {
    /// Cedar must say.
    Fallback,
    Bool(bool),
    Long(i64),
    Text(&'a str),
    Uid(UidId),
    Variable(Var),
    Attribute(&'a str, Bytecode<'a>),
    Has(&'a str, Bytecode<'a>),
    Is(TypeId, Bytecode<'a>),
    Like(LikePattern<'a>, Bytecode<'a>),
    Not(Bytecode<'a>),
    Binary(BinaryOperator, Bytecode<'a>, Bytecode<'a>),
    /// The first is in any of the others.
    In(Bytecode<'a>, Members<'a>),
}

/// What stands between two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum BinaryOperator {
    And,
    Or,
    Equal,
    Less,
    LessOrEqual,
    Contains,
}

/// The members of a set that is written out.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct Members<'a>(ByteCursor<'a>);

/// A pattern: texts between which anything may stand.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct LikePattern<'a>(ByteCursor<'a>);

/// What a part is, in its first byte.
mod kind {
    pub(in crate::pdp) const FALLBACK: u8 = 0;
    pub(in crate::pdp) const FALSE: u8 = 1;
    pub(in crate::pdp) const TRUE: u8 = 2;
    pub(in crate::pdp) const LONG: u8 = 3;
    pub(in crate::pdp) const TEXT: u8 = 4;
    pub(in crate::pdp) const UID: u8 = 5;
    pub(in crate::pdp) const PRINCIPAL: u8 = 6;
    pub(in crate::pdp) const ACTION: u8 = 7;
    pub(in crate::pdp) const RESOURCE: u8 = 8;
    pub(in crate::pdp) const CONTEXT: u8 = 9;
    pub(in crate::pdp) const ATTRIBUTE: u8 = 10;
    pub(in crate::pdp) const HAS: u8 = 11;
    pub(in crate::pdp) const IS: u8 = 12;
    pub(in crate::pdp) const LIKE: u8 = 13;
    pub(in crate::pdp) const NOT: u8 = 14;
    pub(in crate::pdp) const AND: u8 = 15;
    pub(in crate::pdp) const OR: u8 = 16;
    pub(in crate::pdp) const EQUAL: u8 = 17;
    pub(in crate::pdp) const LESS: u8 = 18;
    pub(in crate::pdp) const LESS_OR_EQUAL: u8 = 19;
    pub(in crate::pdp) const CONTAINS: u8 = 20;
    pub(in crate::pdp) const IN: u8 = 21;
}

impl<'a> Bytecode<'a> {
    /// The condition that a policy has in `bytes`; `None` when it has none.
    pub(in crate::pdp) fn of(bytes: ByteCursor<'a>) -> Option<Self> {
        (!bytes.is_empty()).then_some(Self(bytes))
    }

    /// The outermost part.
    pub(in crate::pdp) fn node(self) -> Node<'a> {
        let Self(mut bytes) = self;
        let binary = |binary: BinaryOperator, mut bytes: ByteCursor<'a>| {
            let left = Self(bytes.piece());
            Node::Binary(binary, left, Self(bytes))
        };
        match bytes.u8() {
            kind::FALSE => Node::Bool(false),
            kind::TRUE => Node::Bool(true),
            kind::LONG => Node::Long(bytes.i64()),
            kind::TEXT => Node::Text(bytes.text()),
            kind::UID => Node::Uid(UidId(bytes.u32())),
            kind::PRINCIPAL => Node::Variable(Var::Principal),
            kind::ACTION => Node::Variable(Var::Action),
            kind::RESOURCE => Node::Variable(Var::Resource),
            kind::CONTEXT => Node::Variable(Var::Context),
            kind::ATTRIBUTE => {
                let name = bytes.piece().text();
                Node::Attribute(name, Self(bytes))
            }
            kind::HAS => {
                let name = bytes.piece().text();
                Node::Has(name, Self(bytes))
            }
            kind::IS => {
                let ty = TypeId(bytes.u32());
                Node::Is(ty, Self(bytes))
            }
            kind::LIKE => {
                let pattern = LikePattern(bytes.piece());
                Node::Like(pattern, Self(bytes))
            }
            kind::NOT => Node::Not(Self(bytes)),
            kind::AND => binary(BinaryOperator::And, bytes),
            kind::OR => binary(BinaryOperator::Or, bytes),
            kind::EQUAL => binary(BinaryOperator::Equal, bytes),
            kind::LESS => binary(BinaryOperator::Less, bytes),
            kind::LESS_OR_EQUAL => binary(BinaryOperator::LessOrEqual, bytes),
            kind::CONTAINS => binary(BinaryOperator::Contains, bytes),
            kind::IN => {
                let left = Self(bytes.piece());
                Node::In(left, Members(bytes))
            }
            _ => Node::Fallback,
        }
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Bytecode<'a>;

    fn next(&mut self) -> Option<Bytecode<'a>> {
        let Self(bytes) = self;
        (!bytes.is_empty()).then(|| Bytecode(bytes.piece()))
    }
}

impl LikePattern<'_> {
    /// Whether `text` is the pattern's texts in order, with anything between them.
    pub(in crate::pdp) fn matches(self, text: &str) -> bool {
        let Self(mut bytes) = self;
        // A text begins and ends at the borders of characters, so nothing is found across them.
        let Some(mut rest) = text.strip_prefix(bytes.piece().text()) else {
            return false;
        };
        if bytes.is_empty() {
            return rest.is_empty();
        }
        loop {
            let next = bytes.piece().text();
            if bytes.is_empty() {
                return rest.ends_with(next);
            }
            // The earliest place leaves the most for those that follow.
            match rest.split_once(next) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
    }
}

/// The conditions of one file's rules, in order.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct BytecodeTable {
    bytes: Vec<u8>,
    /// Where each ends; the next begins there.
    ends: Vec<usize>,
    /// Where numbers of uids stand, and of types, which are others in another table.
    uids: Vec<usize>,
    types: Vec<usize>,
}

impl BytecodeTable {
    /// Adds the condition of the next rule.
    ///
    /// Recurses as deep as the condition is nested.
    ///
    /// # Errors
    ///
    /// [`TooManyUids`] when there is no number left for a uid that it names.
    pub(in crate::pdp) fn add(
        &mut self,
        condition: Option<&Expr>,
        uids: &mut Arc<UidInterner>,
    ) -> Result<(), TooManyUids> {
        let begin = self.bytes.len();
        let places = (self.uids.len(), self.types.len());
        if let Some(condition) = condition {
            let mut writer = Writer {
                to: self,
                most: begin + MAX_BYTES,
                uids,
                error: Ok(()),
            };
            writer.node(condition);
            writer.error?;
            if self.bytes.len() - begin > MAX_BYTES {
                self.bytes.truncate(begin);
                self.uids.truncate(places.0);
                self.types.truncate(places.1);
                self.bytes.push(kind::FALLBACK);
            }
        }
        self.ends.push(self.bytes.len());
        Ok(())
    }

    /// Each rule's condition in order, empty for one that always holds.
    pub(in crate::pdp) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(&0).chain(&self.ends);
        let all = begins.zip(&self.ends);
        all.map(|(begin, end)| self.bytes.get(*begin..*end).unwrap_or_default())
    }

    /// The same conditions, numbered in another table.
    ///
    /// # Errors
    ///
    /// [`TooManyUids`] when there is no number left.
    pub(in crate::pdp) fn reinterned(
        &self,
        from: &UidInterner,
        to: &mut Arc<UidInterner>,
    ) -> Result<Self, TooManyUids> {
        let mut reinterned = self.clone();
        let mut renumber = |places: &[usize], number: &mut dyn FnMut(u32) -> Result<u32, _>| {
            for place in places {
                let bytes = reinterned.bytes.get_mut(*place..);
                if let Some(written) = bytes.and_then(|bytes| bytes.first_chunk_mut()) {
                    *written = number(u32::from_le_bytes(*written))?.to_le_bytes();
                }
            }
            Ok(())
        };
        renumber(&self.uids, &mut |uid| {
            from.reinterned(UidId(uid), to).map(|UidId(uid)| uid)
        })?;
        renumber(&self.types, &mut |ty| {
            Ok(from.reinterned_type(TypeId(ty), to).0)
        })?;
        Ok(reinterned)
    }

    /// The memory that they hold, in bytes.
    pub(in crate::pdp) fn bytes(&self) -> usize {
        let places = self.ends.capacity() + self.uids.capacity() + self.types.capacity();
        self.bytes.capacity() + places * size_of::<usize>()
    }
}

/// One condition being written.
struct Writer<'a> {
    to: &'a mut BytecodeTable,
    /// What is written beyond this is written for nothing.
    most: usize,
    uids: &'a mut Arc<UidInterner>,
    error: Result<(), TooManyUids>,
}

impl Writer<'_> {
    fn node(&mut self, expr: &Expr) {
        if self.to.bytes.len() > self.most {
            return;
        }
        match expr.expr_kind() {
            ExprKind::Lit(Literal::Bool(false)) => self.kind(kind::FALSE),
            ExprKind::Lit(Literal::Bool(true)) => self.kind(kind::TRUE),
            ExprKind::Lit(Literal::Long(value)) => {
                self.kind(kind::LONG);
                self.to.bytes.extend(value.to_le_bytes());
            }
            ExprKind::Lit(Literal::String(text)) => {
                self.kind(kind::TEXT);
                self.to.bytes.extend(text.as_bytes());
            }
            ExprKind::Lit(Literal::EntityUID(uid)) => self.uid(uid),
            ExprKind::Var(var) => self.kind(match var {
                Var::Principal => kind::PRINCIPAL,
                Var::Action => kind::ACTION,
                Var::Resource => kind::RESOURCE,
                Var::Context => kind::CONTEXT,
            }),
            ExprKind::And { left, right } => self.binary(kind::AND, left, right),
            ExprKind::Or { left, right } => self.binary(kind::OR, left, right),
            ExprKind::UnaryApp {
                op: UnaryOp::Not,
                arg,
            } => {
                self.kind(kind::NOT);
                self.node(arg);
            }
            ExprKind::BinaryApp { op, arg1, arg2 } => self.operator(*op, arg1, arg2),
            ExprKind::GetAttr { expr, attr } => {
                self.kind(kind::ATTRIBUTE);
                self.text(attr);
                self.node(expr);
            }
            ExprKind::HasAttr { expr, attr } => {
                self.kind(kind::HAS);
                self.text(attr);
                self.node(expr);
            }
            ExprKind::Is { expr, entity_type } => {
                self.kind(kind::IS);
                self.ty(entity_type);
                self.node(expr);
            }
            ExprKind::Like { expr, pattern } => {
                self.kind(kind::LIKE);
                piece(&mut self.to.bytes, |to| {
                    for text in pattern.get_elems().split(|e| *e == PatternElem::Wildcard) {
                        piece(to, |to| {
                            let characters = text.iter().filter_map(|element| match element {
                                PatternElem::Char(character) => Some(*character),
                                PatternElem::Wildcard => None,
                            });
                            to.extend(characters.collect::<String>().as_bytes());
                        });
                    }
                });
                self.node(expr);
            }
            // Slots stand in scopes alone.
            ExprKind::Slot(_)
            | ExprKind::Unknown(_)
            | ExprKind::If { .. }
            | ExprKind::UnaryApp { .. }
            | ExprKind::ExtensionFunctionApp { .. }
            | ExprKind::ExtHasAttr { .. }
            | ExprKind::Set(_)
            | ExprKind::Record(_) => self.kind(kind::FALLBACK),
        }
    }

    fn operator(&mut self, op: BinaryOp, left: &Expr, right: &Expr) {
        match op {
            BinaryOp::Eq => self.binary(kind::EQUAL, left, right),
            BinaryOp::Less => self.binary(kind::LESS, left, right),
            BinaryOp::LessEq => self.binary(kind::LESS_OR_EQUAL, left, right),
            BinaryOp::Contains => self.binary(kind::CONTAINS, left, right),
            BinaryOp::In => {
                let members: &[Expr] = match right.expr_kind() {
                    ExprKind::Set(members) => members,
                    ExprKind::Lit(_) => std::slice::from_ref(right),
                    ExprKind::Slot(_)
                    | ExprKind::Var(_)
                    | ExprKind::Unknown(_)
                    | ExprKind::If { .. }
                    | ExprKind::And { .. }
                    | ExprKind::Or { .. }
                    | ExprKind::UnaryApp { .. }
                    | ExprKind::BinaryApp { .. }
                    | ExprKind::ExtensionFunctionApp { .. }
                    | ExprKind::GetAttr { .. }
                    | ExprKind::HasAttr { .. }
                    | ExprKind::ExtHasAttr { .. }
                    | ExprKind::Like { .. }
                    | ExprKind::Is { .. }
                    | ExprKind::Record(_) => return self.kind(kind::FALLBACK),
                };
                self.kind(kind::IN);
                self.piece(left);
                for member in members {
                    self.piece(member);
                }
            }
            BinaryOp::Add
            | BinaryOp::Sub
            | BinaryOp::Mul
            | BinaryOp::ContainsAll
            | BinaryOp::ContainsAny
            | BinaryOp::GetTag
            | BinaryOp::HasTag => self.kind(kind::FALLBACK),
        }
    }

    fn binary(&mut self, kind: u8, left: &Expr, right: &Expr) {
        self.kind(kind);
        self.piece(left);
        self.node(right);
    }

    fn piece(&mut self, expr: &Expr) {
        let begin = self.to.bytes.len();
        self.to.bytes.extend([0; size_of::<u32>()]);
        self.node(expr);
        // INVARIANT: what is longer than `MAX_BYTES` is thrown away.
        let length = self.to.bytes.len() - begin - size_of::<u32>();
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let room = self.to.bytes.get_mut(begin..);
        if let Some(room) = room.and_then(|room| room.first_chunk_mut()) {
            *room = length.to_le_bytes();
        }
    }

    fn kind(&mut self, kind: u8) {
        self.to.bytes.push(kind);
    }

    fn text(&mut self, text: &str) {
        piece(&mut self.to.bytes, |to| to.extend(text.as_bytes()));
    }

    fn uid(&mut self, uid: &EntityUID) {
        self.kind(kind::UID);
        self.to.uids.push(self.to.bytes.len());
        match UidInterner::intern(self.uids, uid) {
            Ok(UidId(number)) => self.to.bytes.extend(number.to_le_bytes()),
            Err(error) => self.error = Err(error),
        }
    }

    fn ty(&mut self, ty: &EntityType) {
        self.to.types.push(self.to.bytes.len());
        let TypeId(number) = UidInterner::intern_type(self.uids, ty);
        self.to.bytes.extend(number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shorthand of a condition.
    fn shorthand(condition: &str, uids: &mut Arc<UidInterner>) -> BytecodeTable {
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        let policy = cedar_policy_core::parser::parse_policy(None, &text).unwrap();
        let policy: cedar_policy_core::ast::Policy = policy.into();
        let mut shorthands = BytecodeTable::default();
        let expr = policy.non_scope_constraints();
        shorthands.add(expr, uids).unwrap();
        shorthands
    }

    /// A condition written out of its shorthand.
    fn written(node: Bytecode<'_>, uids: &UidInterner) -> String {
        let of = |node| written(node, uids);
        match node.node() {
            Node::Fallback => "?".to_owned(),
            Node::Bool(value) => value.to_string(),
            Node::Long(value) => value.to_string(),
            Node::Text(text) => format!("{text:?}"),
            Node::Uid(uid) => uids.uid(uid).to_string(),
            Node::Variable(variable) => variable.to_string(),
            Node::Attribute(name, holder) => format!("{}.{name}", of(holder)),
            Node::Has(name, holder) => format!("{} has {name}", of(holder)),
            Node::Is(ty, operand) => format!("{} is {}", of(operand), uids.entity_type(ty)),
            Node::Like(_, operand) => format!("{} like", of(operand)),
            Node::Not(operand) => format!("!{}", of(operand)),
            Node::Binary(op, left, right) => format!("({} {op:?} {})", of(left), of(right)),
            Node::In(left, members) => {
                let members: Vec<String> = members.map(of).collect();
                format!("{} in {}", of(left), members.join(", "))
            }
        }
    }

    #[test]
    fn a_condition_is_read_as_it_was_written_in_any_table() {
        let mut uids = Arc::new(UidInterner::default());
        for (condition, expected) in [
            ("true && !false", "(true And !false)"),
            (
                "principal.a.b < -3 || context has c",
                "((principal.a.b Less -3) Or context has c)",
            ),
            (
                r#"resource == Doc::"d" && principal is User"#,
                r#"((resource Equal Doc::"d") And principal is User)"#,
            ),
            (
                r#"action in [Action::"x", principal.who]"#,
                r#"action in Action::"x", principal.who"#,
            ),
            (
                r#"principal.name == "größe" && principal.n <= 9223372036854775807"#,
                r#"((principal.name Equal "größe") And (principal.n LessOrEqual 9223372036854775807))"#,
            ),
            (
                r#"principal.name like "a*" && resource.tags.contains("x")"#,
                r#"(principal.name like And (resource.tags Contains "x"))"#,
            ),
            ("principal.n + 1 == 2 || true", "((? Equal 2) Or true)"),
            ("principal in resource", "?"),
            ("if true then false else true", "?"),
        ] {
            let shorthands = shorthand(condition, &mut uids);
            let read = |shorthands: &BytecodeTable, uids: &UidInterner| {
                let [bytes] = shorthands.iter().collect::<Vec<_>>()[..] else {
                    panic!("{shorthands:?}")
                };
                written(Bytecode::of(ByteCursor(bytes)).unwrap(), uids)
            };
            assert_eq!(read(&shorthands, &uids), expected, "{condition}");
            let mut other = Arc::new(UidInterner::default());
            let first = EntityUID::with_eid_and_type("Else", "e").unwrap();
            UidInterner::intern(&mut other, &first).unwrap();
            let reinterned = shorthands.reinterned(&uids, &mut other).unwrap();
            assert_eq!(read(&reinterned, &other), expected, "{condition}");
        }
    }

    #[test]
    fn conditions_keep_their_order_and_none_is_empty() {
        let mut uids = Arc::new(UidInterner::default());
        let mut shorthands = shorthand("true", &mut uids);
        shorthands.add(None, &mut uids).unwrap();
        let long = Expr::val("x".repeat(MAX_BYTES));
        let named = Expr::is_in(
            Expr::val(EntityUID::with_eid_and_type("A", "a").unwrap()),
            long,
        );
        let last = Expr::and(
            named.clone(),
            Expr::is_entity_type(named, "A".parse().unwrap()),
        );
        shorthands.add(Some(&last), &mut uids).unwrap();
        shorthands.add(Some(&Expr::val(1)), &mut uids).unwrap();
        let all: Vec<_> = shorthands
            .iter()
            .map(ByteCursor)
            .map(Bytecode::of)
            .collect();
        let [first, none, long, last] = all[..] else {
            panic!("{all:?}")
        };
        assert!(matches!(first.unwrap().node(), Node::Bool(true)));
        assert!(none.is_none());
        // Too long, and its uids are not among those to be renumbered.
        assert!(matches!(long.unwrap().node(), Node::Fallback));
        assert!(shorthands.uids.is_empty() && shorthands.types.is_empty());
        assert!(matches!(last.unwrap().node(), Node::Long(1)));
    }

    #[test]
    fn patterns_match_as_cedar_says() {
        use cedar_policy_core::ast::Pattern;

        let texts = [
            "", "a", "ab", "aab", "abab", "ba", "ä", "bä", "a*", "aaa", "abcab",
        ];
        let patterns = [
            "", "*", "a", "a*", "*a", "*b*", "a*b", "a*a*", "**", "*ab*ab", "ä*", r"a\*", "*ä",
        ];
        for pattern in patterns {
            let condition = format!("principal.name like \"{pattern}\"");
            let mut uids = Arc::new(UidInterner::default());
            let shorthands = shorthand(&condition, &mut uids);
            let bytes = shorthands.iter().next().unwrap();
            let Node::Like(wildcards, _) = Bytecode::of(ByteCursor(bytes)).unwrap().node() else {
                panic!("{pattern}")
            };
            let literal = pattern.contains('\\');
            let elements: Vec<PatternElem> = pattern
                .chars()
                .filter(|character| *character != '\\')
                .map(|character| match character {
                    '*' if !literal => PatternElem::Wildcard,
                    other => PatternElem::Char(other),
                })
                .collect();
            let cedar = Pattern::from(elements);
            for text in texts {
                assert_eq!(
                    wildcards.matches(text),
                    cedar.wildcard_match(text),
                    "`{text}` like `{pattern}`"
                );
            }
        }
    }
}
