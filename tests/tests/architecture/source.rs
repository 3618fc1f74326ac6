//! The sources of a crate as the architecture test sees them: modules, what each defines, imports and names.
//!
//! Tokens come from proc-macro2, so that comments and strings are nobody's concern here. `#[cfg(test)]` is left out.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A path to a module or item: its segments.
pub type Path = Vec<String>;

/// A module, inline ones included.
#[derive(Debug, Default)]
pub struct Module {
    /// The file it is in.
    pub file: String,
    /// Names of the items it defines.
    pub items: BTreeSet<String>,
    /// Names of its modules.
    pub children: BTreeSet<String>,
    /// What `use` brings in: the name here, and the path.
    pub imports: Vec<(String, Path)>,
    /// Modules of which `use` brings everything in.
    pub globs: Vec<Path>,
    /// Paths of two segments and more in its code.
    pub paths: Vec<Path>,
}

/// A function with a body.
#[derive(Debug)]
pub struct Function {
    /// Where it is, as `file:line`.
    pub place: String,
    /// Lines of it that are neither blank nor comments.
    pub lines: usize,
    /// Whether a parameter's pattern takes a tuple apart.
    pub takes_tuple_apart: bool,
}

/// A crate.
#[derive(Debug, Default)]
pub struct Crate {
    /// Modules by their paths; the root's is empty.
    pub modules: BTreeMap<Path, Module>,
    /// Functions of all files.
    pub functions: Vec<Function>,
    /// Lines of each file without tests.
    pub lines: BTreeMap<String, usize>,
    /// Names that follow a dot, by file: fields and methods.
    pub members: BTreeMap<String, BTreeSet<String>>,
}

impl Crate {
    /// Reads a crate from its root file on; `read` gives a file's text by its path.
    ///
    /// # Panics
    /// A module's file is missing, or a file is no Rust.
    pub fn read(root: &str, read: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut this = Self::default();
        this.file(Vec::new(), root, read);
        this
    }

    fn file(&mut self, path: Path, file: &str, read: &dyn Fn(&str) -> Option<String>) {
        let text = read(file).unwrap_or_else(|| panic!("{file} is missing"));
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut tests = 0;
        let tokens = without_tests(tokens, &mut tests);
        self.lines.insert(file.to_owned(), text.lines().count() - tests);
        let code: Vec<bool> = text.lines().map(is_code).collect();
        self.functions(file, &code, &tokens);
        self.members.insert(file.to_owned(), members(&tokens));
        for child in self.module(path, file, &tokens) {
            let name = child.join("/");
            let candidates = [format!("{name}.rs"), format!("{name}/mod.rs")];
            let found = candidates.iter().find(|name| read(name).is_some());
            self.file(child, found.unwrap_or_else(|| panic!("no file for module {name}")), read);
        }
    }

    /// Takes a module in; returns the paths of those that have files of their own.
    fn module(&mut self, path: Path, file: &str, tokens: &[TokenTree]) -> Vec<Path> {
        let mut module = Module { file: file.to_owned(), ..Module::default() };
        let mut inline = Vec::new();
        let mut files = Vec::new();
        let mut rest = Vec::new();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            match (word(tokens, at).as_str(), word(tokens, at + 1), tokens.get(at + 2)) {
                ("mod", name, Some(TokenTree::Group(body))) => {
                    inline.push((name, body.stream()));
                    at += 2;
                }
                ("mod", name, _) if !name.is_empty() => {
                    files.push(name);
                    at += 1;
                }
                ("fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static", name, _) => {
                    module.items.insert(name);
                }
                ("macro_rules", _, Some(TokenTree::Ident(name))) => {
                    module.items.insert(name.to_string());
                }
                _ => rest.push(token.clone()),
            }
            at += 1;
        }
        module.children = inline.iter().map(|(name, _)| name).chain(&files).cloned().collect();
        module.names(&rest);
        let below = |name: String| path.iter().cloned().chain([name]).collect::<Path>();
        let mut files: Vec<Path> = files.into_iter().map(below).collect();
        for (name, body) in inline {
            let tokens: Vec<TokenTree> = body.into_iter().collect();
            files.extend(self.module(below(name), file, &tokens));
        }
        self.modules.insert(path, module);
        files
    }

    fn functions(&mut self, file: &str, code: &[bool], tokens: &[TokenTree]) {
        for (at, token) in tokens.iter().enumerate() {
            if let TokenTree::Group(group) = token {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                self.functions(file, code, &inner);
            }
            if word(tokens, at) != "fn" || word(tokens, at + 1).is_empty() {
                continue;
            }
            let rest = tokens.get(at..).unwrap_or_default();
            let ends = |token: &&TokenTree| is_punct(token, ';') || is_group(token, Delimiter::Brace);
            let Some(TokenTree::Group(body)) = rest.iter().find(ends) else { continue };
            let parameters = rest.iter().find(|token| is_group(token, Delimiter::Parenthesis));
            let first = token.span().start().line;
            let last = body.span_close().end().line;
            self.functions.push(Function {
                place: format!("{file}:{first}"),
                lines: code.get(first - 1..last).unwrap_or_default().iter().filter(|is| **is).count(),
                takes_tuple_apart: parameters.is_some_and(takes_tuple_apart),
            });
        }
    }

    /// Where a path that `from` names leads: the modules that define it, with the item's name where it is one. Re-exports
    /// are followed. Nothing for a path that leaves the crate.
    pub fn resolve(&self, from: &[String], path: &[String]) -> BTreeSet<Target> {
        self.follow(from, path, 0)
    }

    fn follow(&self, from: &[String], path: &[String], depth: usize) -> BTreeSet<Target> {
        let Some((first, rest)) = path.split_first() else { return BTreeSet::new() };
        let mut found = match first.as_str() {
            "crate" => BTreeSet::from([Target::module(&[])]),
            "self" => BTreeSet::from([Target::module(from)]),
            "super" => BTreeSet::from([Target::module(from.split_last().map_or(from, |(_, parent)| parent))]),
            name => self.lookup(from, name, depth),
        };
        for segment in rest {
            let step = |target: Target| match (&target.item, segment.as_str()) {
                (Some(_), _) => BTreeSet::from([target]),
                (None, "super") => {
                    BTreeSet::from([Target::module(target.module.split_last().map_or(&[][..], |(_, parent)| parent))])
                }
                (None, "self") => BTreeSet::from([target]),
                (None, name) => {
                    let found = self.lookup(&target.module, name, depth);
                    let unknown = Target { item: Some(name.to_owned()), ..target };
                    if found.is_empty() { BTreeSet::from([unknown]) } else { found }
                }
            };
            found = found.into_iter().flat_map(step).collect();
        }
        found
    }

    /// What a name means in a module: a type, a function and a module may share one.
    fn lookup(&self, module: &[String], name: &str, depth: usize) -> BTreeSet<Target> {
        let mut found = BTreeSet::new();
        let Some(here) = self.modules.get(module).filter(|_| depth < 16) else { return found };
        if here.children.contains(name) {
            found.insert(Target::module(&[module, &[name.to_owned()]].concat()));
        }
        if here.items.contains(name) {
            found.insert(Target { module: module.to_vec(), item: Some(name.to_owned()) });
        }
        for (_, path) in here.imports.iter().filter(|(known, path)| known == name && path.as_slice() != [name]) {
            found.extend(self.follow(module, path, depth + 1));
        }
        if found.is_empty() {
            for glob in here.globs.iter().flat_map(|glob| self.follow(module, glob, depth + 1)) {
                found.extend(self.lookup(&glob.module, name, depth + 1));
            }
        }
        found
    }
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The module, or that of the item.
    pub module: Path,
    /// The item.
    pub item: Option<String>,
}

impl Target {
    fn module(path: &[String]) -> Self {
        Self { module: path.to_vec(), item: None }
    }
}

impl Module {
    /// Takes in what tokens name.
    fn names(&mut self, tokens: &[TokenTree]) {
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    self.names(&inner);
                }
                TokenTree::Ident(ident)
                    if ident == "use" && !tokens.get(at).is_some_and(|next| is_punct(next, '<')) =>
                {
                    at = self.import(tokens, at, &[]);
                }
                TokenTree::Ident(_) => {
                    let (path, next) = path(tokens, at - 1);
                    let inside = at >= 2 && tokens.get(at - 2).is_some_and(|before| is_punct(before, ':'));
                    let continued = inside && at >= 3 && tokens.get(at - 3).is_some_and(|before| is_punct(before, ':'));
                    if path.len() > 1 && !continued {
                        self.paths.push(path);
                    }
                    at = next;
                }
                _ => {}
            }
        }
    }

    /// Takes one tree of a `use` in, from `at` on; returns where it ends.
    fn import(&mut self, tokens: &[TokenTree], mut at: usize, prefix: &[String]) -> usize {
        while tokens.get(at).is_some_and(|token| is_punct(token, ':')) {
            at += 1;
        }
        let (path, next) = path(tokens, at);
        at = next;
        let whole: Path = prefix.iter().chain(&path).cloned().collect();
        match tokens.get(at) {
            Some(TokenTree::Group(group)) => {
                let list: Vec<TokenTree> = group.stream().into_iter().collect();
                for tree in list.split(|token| is_punct(token, ',')).filter(|tree| !tree.is_empty()) {
                    self.import(tree, 0, &whole);
                }
                return at + 1;
            }
            Some(star) if is_punct(star, '*') => self.globs.push(whole),
            _ => {
                let whole: Path = match whole.split_last() {
                    Some((last, parent)) if last == "self" && !parent.is_empty() => parent.to_vec(),
                    _ => whole,
                };
                let renamed = word(tokens, at) == "as";
                let name = if renamed { word(tokens, at + 1) } else { whole.last().cloned().unwrap_or_default() };
                self.imports.push((name, whole));
            }
        }
        at
    }
}

/// The path that begins at a token, and the place after it and its last `::`.
fn path(tokens: &[TokenTree], mut at: usize) -> (Path, usize) {
    let mut path = Vec::new();
    while !word(tokens, at).is_empty() {
        path.push(word(tokens, at));
        at += 1;
        let colon = |at: usize| tokens.get(at).is_some_and(|token| is_punct(token, ':'));
        if !(colon(at) && colon(at + 1)) {
            break;
        }
        at += 2;
    }
    (path, at)
}

/// The identifier at a place, or nothing.
fn word(tokens: &[TokenTree], at: usize) -> String {
    match tokens.get(at) {
        Some(TokenTree::Ident(ident)) => ident.to_string(),
        _ => String::new(),
    }
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

fn is_group(token: &TokenTree, wanted: Delimiter) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == wanted)
}

fn is_code(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//")
}

/// Names that follow a dot.
fn members(tokens: &[TokenTree]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(group) => found.extend(members(&group.stream().into_iter().collect::<Vec<_>>())),
            token if is_punct(token, '.') => drop(found.insert(word(tokens, at + 1))),
            _ => {}
        }
    }
    found
}

/// Whether a list of parameters has a tuple for a pattern.
fn takes_tuple_apart(parameters: &TokenTree) -> bool {
    let TokenTree::Group(group) = parameters else { return false };
    let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
    tokens.iter().zip(tokens.iter().skip(1)).enumerate().any(|(at, (token, next))| {
        let begins =
            at == 0 || tokens.get(at - 1).is_some_and(|before| is_punct(before, ',')) || word(&tokens, at - 1) == "mut";
        begins && is_group(token, Delimiter::Parenthesis) && is_punct(next, ':')
    })
}

/// The tokens without anything that is for tests only; `lines` counts the lines of that.
fn without_tests(tokens: TokenStream, lines: &mut usize) -> Vec<TokenTree> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut kept = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        if is_punct(token, '#') && tokens.get(at + 1).is_some_and(is_cfg_test) {
            let end = item_end(&tokens, at);
            let last = tokens.get(end - 1).unwrap_or(token);
            *lines += last.span().end().line + 1 - token.span().start().line;
            at = end;
            continue;
        }
        kept.push(match token {
            TokenTree::Group(group) => {
                let mut inner =
                    Group::new(group.delimiter(), without_tests(group.stream(), lines).into_iter().collect());
                inner.set_span(group.span());
                TokenTree::Group(inner)
            }
            token => token.clone(),
        });
        at += 1;
    }
    kept
}

fn is_cfg_test(attribute: &TokenTree) -> bool {
    let text = attribute.to_string().replace(' ', "");
    text == "[cfg(test)]" || text.starts_with("[cfg(all(test,")
}

/// The place after the item, field or statement with attributes at `at`.
fn item_end(tokens: &[TokenTree], mut at: usize) -> usize {
    while tokens.get(at).is_some_and(|token| is_punct(token, '#')) {
        at += 2;
    }
    // Only of a field or variant is a comma the end.
    let keywords = [
        "pub", "fn", "mod", "use", "impl", "struct", "enum", "trait", "const", "static", "type", "unsafe", "async",
        "let",
    ];
    let is_item = keywords.contains(&word(tokens, at).as_str());
    while let Some(token) = tokens.get(at) {
        at += 1;
        if is_punct(token, ';') || is_group(token, Delimiter::Brace) || !is_item && is_punct(token, ',') {
            break;
        }
    }
    at
}
