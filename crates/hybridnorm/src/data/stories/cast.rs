//! Characters and objects of a story, and their substitution into sentence templates.

use super::StoryRng;
use super::words::{
    BOYS, COLOURS, FEARS, FOODS, GIRLS, GLAD, HOMES, KINDLY, MEN, NUMBERS, OBSTACLES, PATIENTS,
    ROADS, SAD, SKILLS, THINGS, TIMES, TRAITS, WEATHERS, WOMEN, WORKS,
};

struct Person {
    name: &'static str,
    female: bool,
}

/// Values of all placeholders of a story.
pub(super) struct Cast {
    hero: Person,
    friend: Person,
    relative: Person,
    words: Vec<(&'static str, String)>,
}

impl Cast {
    pub(super) fn new(rng: &mut StoryRng) -> Self {
        let child = |rng: &mut StoryRng| {
            let female = rng.below(2) == 0;
            let name = *rng.pick(if female { GIRLS } else { BOYS });
            Person { name, female }
        };
        let hero = child(rng);
        let friend = loop {
            let friend = child(rng);
            if friend.name != hero.name {
                break friend;
            }
        };
        let female = rng.below(2) == 0;
        let relative = Person {
            name: rng.pick::<&str>(if female { WOMEN } else { MEN }),
            female,
        };
        let mut cast = Self {
            hero,
            friend,
            relative,
            words: Vec::new(),
        };
        cast.draw(rng);
        cast
    }

    fn draw(&mut self, rng: &mut StoryRng) {
        for (key, list) in [
            ("trait", TRAITS),
            ("home", HOMES),
            ("time", TIMES),
            ("weather", WEATHERS),
            ("colour", COLOURS),
            ("sad", SAD),
            ("glad", GLAD),
            ("kindly", KINDLY),
            ("road", ROADS),
        ] {
            let word = *rng.pick(list);
            self.set(key, word);
        }
        let &(thing, used, purpose) = rng.pick(THINGS);
        self.set_all(&["thing", "used", "purpose"], &[thing, used, purpose]);
        let obstacle = rng.pick(OBSTACLES);
        self.set_all(
            &["where", "try", "why", "again", "beast", "rescue"],
            obstacle,
        );
        let skill = rng.pick(SKILLS);
        self.set_all(&["skill", "skilling", "failed", "advice", "shown"], skill);
        let fear = rng.pick(FEARS);
        self.set_all(&["fear", "fearplace", "worse", "trick", "truth"], fear);
        let work = rng.pick(WORKS);
        self.set_all(&["work", "first", "second", "third", "making"], work);
        let patient = rng.pick(PATIENTS);
        self.set_all(&["patient", "wound", "feed", "leave"], patient);
        let &(one, many, from) = rng.pick(FOODS);
        self.set_all(&["food", "foods", "foodfrom"], &[one, many, from]);
        self.set_numbers(rng, one, many);
        let other = loop {
            let other = *rng.pick(COLOURS);
            if other != self.word("colour") {
                break other;
            }
        };
        self.set("othercolour", other);
    }

    /// Sets numbers that add up: `all` = `given` + `left`, `total` = `all` + `more`.
    fn set_numbers(&mut self, rng: &mut StoryRng, one: &str, many: &str) {
        let all = 3 + rng.below(10);
        let given = 1 + rng.below(all - 1);
        let left = all - given;
        let more = 2 + rng.below(7);
        let noun = |n: usize| format!("{} {}", NUMBERS[n], if n == 1 { one } else { many });
        let verb = |n: usize| if n == 1 { "was" } else { "were" };
        self.set("all", &noun(all));
        self.set("given", &noun(given));
        self.set("left", &noun(left));
        self.set("leftwas", verb(left));
        self.set("allnumber", NUMBERS[all]);
        self.set("givennumber", NUMBERS[given]);
        self.set("leftnumber", NUMBERS[left]);
        self.set("more", &noun(more));
        self.set("morenumber", NUMBERS[more]);
        self.set("total", &noun(all + more));
        self.set("totalnumber", NUMBERS[all + more]);
        self.set("days", NUMBERS[2 + rng.below(11)]);
    }

    fn set(&mut self, key: &'static str, word: &str) {
        let word = self.fill(word);
        self.words.push((key, word));
    }

    fn set_all(&mut self, keys: &[&'static str], words: &[&str]) {
        for (key, word) in keys.iter().zip(words) {
            self.set(key, word);
        }
    }

    fn word(&self, key: &str) -> &str {
        self.words
            .iter()
            .find(|(name, _)| *name == key)
            .map_or("", |(_, word)| word)
    }

    #[cfg(test)]
    pub(super) fn genders(&self) -> [bool; 3] {
        [self.hero.female, self.friend.female, self.relative.female]
    }

    /// Fills a template, with capital letters at the start of sentences.
    ///
    /// `{A}`, `{B}` and `{R}` are hero, friend and relative; `{A.he}`, `{A.his}`, `{A.him}`,
    /// `{A.himself}` and `{A.boy}` agree with them; `{word}` is a word of the cast, and `{a word}`
    /// the word after "a" or "an".
    pub(super) fn fill_sentence(&self, template: &str) -> String {
        capitalized(&self.fill(template))
    }

    fn fill(&self, template: &str) -> String {
        let mut text = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let (key, after) = after.split_once('}').unwrap_or((after, ""));
            text.push_str(&self.resolve(key));
            rest = after;
        }
        text + rest
    }

    fn resolve(&self, key: &str) -> String {
        if let Some(key) = key.strip_prefix("a ") {
            let word = self.resolve(key);
            let article = match word.starts_with(['a', 'e', 'i', 'o', 'u']) {
                true => "an",
                false => "a",
            };
            return format!("{article} {word}");
        }
        let (who, form) = key.split_once('.').unwrap_or((key, ""));
        let person = match who {
            "A" => &self.hero,
            "B" => &self.friend,
            "R" => &self.relative,
            _ => return self.word(key).to_owned(),
        };
        match (form, person.female) {
            ("he", true) => "she",
            ("he", false) => "he",
            ("He", true) => "She",
            ("He", false) => "He",
            ("his" | "him", true) => "her",
            ("his", false) => "his",
            ("him", false) => "him",
            ("himself", true) => "herself",
            ("himself", false) => "himself",
            ("His", true) => "Her",
            ("His", false) => "His",
            ("boy", true) => "girl",
            ("boy", false) => "boy",
            _ => person.name,
        }
        .to_owned()
    }
}

/// Capitalizes the first letter, also after an opening quotation mark, and letters after `. `, `! ` and `? `.
fn capitalized(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut start = true;
    let mut ended = false;
    for c in text.chars() {
        if start && c.is_alphabetic() {
            result.extend(c.to_uppercase());
            start = false;
        } else {
            result.push(c);
        }
        match c {
            '.' | '!' | '?' => ended = true,
            ' ' if ended => {
                start = true;
                ended = false;
            }
            _ => ended = false,
        }
    }
    result
}
