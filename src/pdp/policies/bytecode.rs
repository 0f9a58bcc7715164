//! Conditions as bytecode for the interpreter.
//!
//! Cedar's condition is a tree of separate allocations, and with 100,000 policies none of them is in
//! the processor's caches. So each condition is encoded once, when its policy is loaded: operators
//! before operands, entities and types as ids, names and literals inline. The index stores the
//! bytecode beside the scope, so a candidate is read from front to back.
//!
//! An expression without an encoding becomes [`Node::Fallback`], which leaves it to Cedar.

use std::sync::Arc;

use cedar_policy_core::ast::{
    BinaryOp, EntityType, EntityUID, Expr, ExprKind, Literal, PatternElem, UnaryOp, Var,
};

use super::cursor::{ByteCursor, begin_piece, end_piece, write_piece};
use crate::pdp::entities::interner::{TooManyUids, TypeId, UidId, UidInterner};

/// Longest encoded condition; longer ones are left to Cedar, as each link has its own copy.
const MAX_BYTES: usize = 4_096;

/// An encoded condition or subexpression.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct Bytecode<'a>(ByteCursor<'a>);

/// A decoded expression whose operands are still encoded.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) enum Node<'a> {
    /// An expression that Cedar must evaluate.
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
    /// `in`, with one or more uids on the right.
    In(Bytecode<'a>, Members<'a>),
}

/// A binary operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pdp) enum BinaryOperator {
    And,
    Or,
    Equal,
    Less,
    LessOrEqual,
    Contains,
}

/// The encoded members of a set literal.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct Members<'a>(ByteCursor<'a>);

/// An encoded pattern of `like`: the texts between its wildcards.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct LikePattern<'a>(ByteCursor<'a>);

/// The first byte of an encoded expression.
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
    /// Wraps an encoded condition; `None` if it is empty, which is a condition that always holds.
    pub(in crate::pdp) fn new(bytes: ByteCursor<'a>) -> Option<Self> {
        (!bytes.is_empty()).then_some(Self(bytes))
    }

    /// Decodes the outermost expression.
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
    /// Returns whether `text` matches the pattern.
    pub(in crate::pdp) fn matches(self, text: &str) -> bool {
        let Self(mut bytes) = self;
        // The pieces are whole characters, so no match splits one.
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
            // The earliest match leaves the most text for the following pieces.
            match rest.split_once(next) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
    }
}

/// The encoded conditions of one file's rules, in order.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct BytecodeTable {
    bytes: Vec<u8>,
    /// The end offset of each condition, at which the next begins.
    ends: Vec<usize>,
    /// The offsets of uid ids in `bytes`, to replace them when they are reinterned.
    uid_offsets: Vec<usize>,
    /// The same for type ids.
    type_offsets: Vec<usize>,
}

impl BytecodeTable {
    /// Encodes and appends the condition of the next rule.
    ///
    /// Recurses as deep as the condition is nested.
    pub(in crate::pdp) fn add(
        &mut self,
        condition: Option<&Expr>,
        uids: &mut Arc<UidInterner>,
    ) -> Result<(), TooManyUids> {
        let begin = self.bytes.len();
        let offsets = (self.uid_offsets.len(), self.type_offsets.len());
        if let Some(condition) = condition {
            let mut writer = Writer {
                table: self,
                limit: begin + MAX_BYTES,
                uids,
                error: Ok(()),
            };
            writer.node(condition);
            writer.error?;
            if self.bytes.len() - begin > MAX_BYTES {
                self.bytes.truncate(begin);
                self.uid_offsets.truncate(offsets.0);
                self.type_offsets.truncate(offsets.1);
                self.bytes.push(kind::FALLBACK);
            }
        }
        self.ends.push(self.bytes.len());
        Ok(())
    }

    /// Returns each rule's condition in order; an empty one always holds.
    pub(in crate::pdp) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(&0).chain(&self.ends);
        let ranges = begins.zip(&self.ends);
        ranges.map(|(begin, end)| self.bytes.get(*begin..*end).unwrap_or_default())
    }

    /// Returns the same conditions with the ids of another interner.
    pub(in crate::pdp) fn reinterned(
        &self,
        from: &UidInterner,
        to: &mut Arc<UidInterner>,
    ) -> Result<Self, TooManyUids> {
        let mut reinterned = self.clone();
        let mut replace = |offsets: &[usize], new_id: &mut dyn FnMut(u32) -> Result<u32, _>| {
            for offset in offsets {
                let bytes = reinterned.bytes.get_mut(*offset..);
                if let Some(id) = bytes.and_then(|bytes| bytes.first_chunk_mut()) {
                    *id = new_id(u32::from_le_bytes(*id))?.to_le_bytes();
                }
            }
            Ok(())
        };
        replace(&self.uid_offsets, &mut |uid| {
            from.reinterned(UidId(uid), to).map(|UidId(uid)| uid)
        })?;
        replace(&self.type_offsets, &mut |ty| {
            Ok(from.reinterned_type(TypeId(ty), to).0)
        })?;
        Ok(reinterned)
    }

    /// Returns the heap memory of the bytecode, in bytes.
    pub(in crate::pdp) fn bytes(&self) -> usize {
        let offsets =
            self.ends.capacity() + self.uid_offsets.capacity() + self.type_offsets.capacity();
        self.bytes.capacity() + offsets * size_of::<usize>()
    }
}

/// An encoder of one condition.
struct Writer<'a> {
    table: &'a mut BytecodeTable,
    /// The length of `table.bytes` at which encoding stops: the condition is too long.
    limit: usize,
    uids: &'a mut Arc<UidInterner>,
    error: Result<(), TooManyUids>,
}

impl Writer<'_> {
    fn node(&mut self, expr: &Expr) {
        if self.table.bytes.len() > self.limit {
            return;
        }
        match expr.expr_kind() {
            ExprKind::Lit(Literal::Bool(false)) => self.kind(kind::FALSE),
            ExprKind::Lit(Literal::Bool(true)) => self.kind(kind::TRUE),
            ExprKind::Lit(Literal::Long(value)) => {
                self.kind(kind::LONG);
                self.table.bytes.extend(value.to_le_bytes());
            }
            ExprKind::Lit(Literal::String(text)) => {
                self.kind(kind::TEXT);
                self.table.bytes.extend(text.as_bytes());
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
            ExprKind::BinaryApp { op, arg1, arg2 } => match op {
                BinaryOp::Eq => self.binary(kind::EQUAL, arg1, arg2),
                BinaryOp::Less => self.binary(kind::LESS, arg1, arg2),
                BinaryOp::LessEq => self.binary(kind::LESS_OR_EQUAL, arg1, arg2),
                BinaryOp::Contains => self.binary(kind::CONTAINS, arg1, arg2),
                BinaryOp::In => self.is_in(arg1, arg2),
                BinaryOp::Add
                | BinaryOp::Sub
                | BinaryOp::Mul
                | BinaryOp::ContainsAll
                | BinaryOp::ContainsAny
                | BinaryOp::GetTag
                | BinaryOp::HasTag => self.kind(kind::FALLBACK),
            },
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
                write_piece(&mut self.table.bytes, |bytes| {
                    for text in pattern.get_elems().split(|e| *e == PatternElem::Wildcard) {
                        write_piece(bytes, |bytes| {
                            let characters = text.iter().filter_map(|element| match element {
                                PatternElem::Char(character) => Some(*character),
                                PatternElem::Wildcard => None,
                            });
                            bytes.extend(characters.collect::<String>().as_bytes());
                        });
                    }
                });
                self.node(expr);
            }
            // Only scopes contain slots.
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

    /// Writes `in`, if the right side is a uid or a set.
    fn is_in(&mut self, left: &Expr, right: &Expr) {
        let members: &[Expr] = if let ExprKind::Set(members) = right.expr_kind() {
            members
        } else if let ExprKind::Lit(_) = right.expr_kind() {
            std::slice::from_ref(right)
        } else {
            return self.kind(kind::FALLBACK);
        };
        self.kind(kind::IN);
        self.piece(left);
        for member in members {
            self.piece(member);
        }
    }

    /// Writes a binary expression; only its first operand has a length.
    fn binary(&mut self, kind: u8, left: &Expr, right: &Expr) {
        self.kind(kind);
        self.piece(left);
        self.node(right);
    }

    /// Writes an expression with its length.
    fn piece(&mut self, expr: &Expr) {
        let begin = begin_piece(&mut self.table.bytes);
        self.node(expr);
        end_piece(&mut self.table.bytes, begin);
    }

    fn kind(&mut self, kind: u8) {
        self.table.bytes.push(kind);
    }

    fn text(&mut self, text: &str) {
        write_piece(&mut self.table.bytes, |bytes| bytes.extend(text.as_bytes()));
    }

    fn uid(&mut self, uid: &EntityUID) {
        self.kind(kind::UID);
        self.table.uid_offsets.push(self.table.bytes.len());
        match UidInterner::intern(self.uids, uid) {
            Ok(UidId(id)) => self.table.bytes.extend(id.to_le_bytes()),
            Err(error) => self.error = Err(error),
        }
    }

    fn ty(&mut self, ty: &EntityType) {
        self.table.type_offsets.push(self.table.bytes.len());
        let TypeId(id) = UidInterner::intern_type(self.uids, ty);
        self.table.bytes.extend(id.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes one condition.
    fn encode(condition: &str, uids: &mut Arc<UidInterner>) -> BytecodeTable {
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        let policy = cedar_policy_core::parser::parse_policy(None, &text).unwrap();
        let policy: cedar_policy_core::ast::Policy = policy.into();
        let mut table = BytecodeTable::default();
        let expr = policy.non_scope_constraints();
        table.add(expr, uids).unwrap();
        table
    }

    /// Decodes a condition to readable text.
    fn decode(node: Bytecode<'_>, uids: &UidInterner) -> String {
        let text = |node| decode(node, uids);
        match node.node() {
            Node::Fallback => "?".to_owned(),
            Node::Bool(value) => value.to_string(),
            Node::Long(value) => value.to_string(),
            Node::Text(text) => format!("{text:?}"),
            Node::Uid(uid) => uids.uid(uid).to_string(),
            Node::Variable(variable) => variable.to_string(),
            Node::Attribute(name, holder) => format!("{}.{name}", text(holder)),
            Node::Has(name, holder) => format!("{} has {name}", text(holder)),
            Node::Is(ty, operand) => format!("{} is {}", text(operand), uids.entity_type(ty)),
            Node::Like(_, operand) => format!("{} like", text(operand)),
            Node::Not(operand) => format!("!{}", text(operand)),
            Node::Binary(op, left, right) => format!("({} {op:?} {})", text(left), text(right)),
            Node::In(left, members) => {
                let members: Vec<String> = members.map(text).collect();
                format!("{} in {}", text(left), members.join(", "))
            }
        }
    }

    #[test]
    fn conditions_are_decoded_as_encoded() {
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
            let table = encode(condition, &mut uids);
            let read = |table: &BytecodeTable, uids: &UidInterner| {
                let [bytes] = table.iter().collect::<Vec<_>>()[..] else {
                    panic!("{table:?}")
                };
                decode(Bytecode::new(ByteCursor(bytes)).unwrap(), uids)
            };
            assert_eq!(read(&table, &uids), expected, "{condition}");
            let mut other = Arc::new(UidInterner::default());
            let first = EntityUID::with_eid_and_type("Else", "e").unwrap();
            UidInterner::intern(&mut other, &first).unwrap();
            let reinterned = table.reinterned(&uids, &mut other).unwrap();
            assert_eq!(read(&reinterned, &other), expected, "{condition}");
        }
    }

    #[test]
    fn conditions_keep_their_order() {
        let mut uids = Arc::new(UidInterner::default());
        let mut table = encode("true", &mut uids);
        table.add(None, &mut uids).unwrap();
        let long = Expr::val("x".repeat(MAX_BYTES));
        let named = Expr::is_in(
            Expr::val(EntityUID::with_eid_and_type("A", "a").unwrap()),
            long,
        );
        let last = Expr::and(
            named.clone(),
            Expr::is_entity_type(named, "A".parse().unwrap()),
        );
        table.add(Some(&last), &mut uids).unwrap();
        table.add(Some(&Expr::val(1)), &mut uids).unwrap();
        let all: Vec<_> = table.iter().map(ByteCursor).map(Bytecode::new).collect();
        let [first, none, long, last] = all[..] else {
            panic!("{all:?}")
        };
        assert!(matches!(first.unwrap().node(), Node::Bool(true)));
        assert!(none.is_none());
        // Too long, so the offsets of its uids are removed.
        assert!(matches!(long.unwrap().node(), Node::Fallback));
        assert!(table.uid_offsets.is_empty() && table.type_offsets.is_empty());
        assert!(matches!(last.unwrap().node(), Node::Long(1)));
    }

    #[test]
    fn patterns_match_as_in_cedar() {
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
            let table = encode(&condition, &mut uids);
            let bytes = table.iter().next().unwrap();
            let Node::Like(wildcards, _) = Bytecode::new(ByteCursor(bytes)).unwrap().node() else {
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
