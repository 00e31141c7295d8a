//! Plots. Each inner list is one slot of the story with its alternative sentences.

use super::Plot;

pub(super) const PLOTS: &[Plot] = &[LOST, GIFT, SHARING, NURSING, FEAR, QUARREL, LEARNING, TRADE];

const OPENING: &[&str] = &[
    "{A} was {a trait} {A.boy} who lived {home}.",
    "There was once {a trait} {A.boy} called {A}. {A.He} lived {home} with {A.his} {R}.",
    "{home} there lived {a trait} {A.boy} whose name was {A}.",
    "{A} and {A.his} {R} lived {home}. Everyone knew {A} as {a trait} {A.boy}.",
    "The story of {A} begins {home}. {A.He} was {a trait} {A.boy}.",
    "Nobody {home} was as {trait} as {A}, and {A.he} knew it.",
];

const WEATHER: &[&str] = &[
    "{time}, {weather}.",
    "It was {time}, and {weather}.",
    "{time}, when {weather}, {A} woke up early.",
    "This happened {time}. {A} looked out of the window and saw that {weather}.",
];

const LOST: Plot = Plot {
    paragraphs: &[
        &[
            OPENING,
            &[
                "{A.his} dearest thing was {a colour} {thing}, a present from {A.his} {R}.",
                "{A.his} {R} had given {A.him} {a colour} {thing} for {purpose}.",
                "{A.he} owned {a colour} {thing} and took it everywhere.",
                "On {A.his} birthday {A.he} had been given {a colour} {thing}, and it was made for {purpose}.",
            ],
        ],
        &[
            WEATHER,
            &[
                "{A} reached for the {thing}, but it was gone.",
                "When {A} came home, the {thing} was missing.",
                "{A} looked into every pocket. The {thing} was not there.",
                "The {colour} {thing} had disappeared, and {A} was {sad}.",
            ],
            &[
                "\"Have you seen my {thing}?\" {A} asked {A.his} friend {B}.",
                "{A} ran {road} to ask {B}. \"My {thing} is lost,\" {A.he} said.",
                "\"Help me look for it,\" {A.he} said to {B}, who lived next door.",
            ],
            &[
                "\"I saw something {colour} {where},\" said {B}.",
                "{B} thought for a moment. \"There is something {colour} {where},\" {B.he} answered.",
                "\"Come with me,\" said {B}. \"I believe it is {where}.\"",
            ],
        ],
        &[
            &[
                "{A} {try}, but {why}.",
                "First {A} {try}. It was no use, because {why}.",
                "There it was! {A} {try}, but {why}.",
            ],
            &[
                "Then {A.he} {again}.",
                "After that {A.he} {again}. {A} felt {sad}.",
                "{A.he} did not give up and {again}.",
                "{B} wanted to go home, but {A} {again}.",
            ],
            &[
                "{a beast} had been watching them. It {rescue}.",
                "Just then {a beast} came by. \"Please help us,\" said {A}, and the {beast} {rescue}.",
                "\"We need someone else,\" said {B}, and called the {beast}. It {rescue}.",
                "An old friend of {B}, {a beast}, heard the noise. The {beast} {rescue}.",
            ],
        ],
        &[
            &[
                "{A} was {glad} and {used}.",
                "There lay the {colour} {thing}. {A} picked it up and {used}.",
                "\"My {thing}!\" cried {A}. {A.he} hugged {B} and {used}.",
            ],
            &[
                "The {beast} got half of {A.his} supper, and {B} got the other half.",
                "{A.he} thanked the {beast}, and then {A.he} thanked {B}.",
                "From then on the {beast} was welcome in the house of {A.his} {R}.",
                "At home {A} told {A.his} {R} about the {beast} that {rescue}.",
            ],
            &[
                "What one cannot do alone, three can do together.",
                "A good friend is worth more than any {thing}.",
                "Since that day {A} ties a string to everything that {A.he} loves.",
                "Whoever asks for help has already found half of it.",
            ],
        ],
    ],
};

const GIFT: Plot = Plot {
    paragraphs: &[
        &[
            OPENING,
            WEATHER,
            &[
                "Tomorrow was the birthday of {A.his} {R}, and {A} had no present yet.",
                "{A.his} {R} had been ill for {days} days, and {A} wanted to cheer {R.him} up.",
                "{A.his} {R} was coming home after a long journey, and {A} wanted to surprise {R.him}.",
            ],
            &[
                "\"I will make {a work},\" {A} decided.",
                "\"{R.He} needs {a work},\" {A} thought, \"and I will make it with my own hands.\"",
                "{A} thought about it all morning and chose to make {a work}.",
            ],
        ],
        &[
            &[
                "For this {A.he} needed {first}, {second} and {third}.",
                "It takes three things: {first}, {second} and {third}.",
            ],
            &[
                "There was enough {first} at home, and {A} found {second} in the shed, but there was no {third} anywhere.",
                "{A} had the {first} already and bought the {second} with {A.his} last coin. Only the {third} was missing.",
                "The {first} and the {second} lay in the kitchen. The {third}, however, was all used up.",
            ],
            &[
                "{A} went {road} to the shop, but the shop was closed.",
                "{A} tried it without {third}, and it fell apart.",
                "\"How can I go on without {third}?\" {A.he} sighed, and {A.he} was {sad}.",
            ],
            &[
                "On the way {A.he} met {B}, who was carrying {a colour} {thing}.",
                "Then {B} came {road} with {a colour} {thing} under one arm.",
                "{B} was sitting on the wall beside {a colour} {thing}. {B.He} looked up.",
            ],
            &[
                "\"We have {third} at our house,\" said {B}. \"You may have it if you carry this {thing} for me.\"",
                "\"Take our {third},\" {B} said {kindly}, \"and mend my {thing} when you have time.\"",
                "\"I know where there is {third},\" said {B}. \"First help me with my {thing}.\"",
            ],
        ],
        &[
            &[
                "{A} kept the bargain. Then {A.he} sat down and {making}.",
                "So {A} helped {B} first. Afterwards {A.he} {making}.",
                "When that was done, {A} hurried home with the {third} and {making}.",
            ],
            &[
                "In the evening the {work} was ready.",
                "It took longer than {A} had thought, but at last the {work} was finished.",
                "The {work} was not perfect, but it was beautiful.",
            ],
            &[
                "\"Did you make this for me?\" asked {A.his} {R}, and {R.his} eyes were wet.",
                "When {A.his} {R} saw it, {R.he} laughed and clapped {R.his} hands.",
                "{A.his} {R} took the {work} with both hands and said nothing for a while, for {R.he} was {glad}.",
            ],
            &[
                "\"{B} gave me the {third},\" said {A}, \"so it is from both of us.\"",
                "\"The {third} came from {B},\" {A} said, because {A.he} was honest.",
                "They invited {B} too, and {B.he} brought {B.his} {thing} along.",
            ],
            &[
                "A present made by hand is never too small.",
                "The best things in it were time and love.",
                "So the {first}, the {second} and the {third} became something that none of them was alone.",
            ],
        ],
    ],
};

const SHARING: Plot = Plot {
    paragraphs: &[
        &[
            OPENING,
            WEATHER,
            &[
                "{A} had {all} {foodfrom} and put them into {a colour} basket.",
                "{A.his} {R} gave {A.him} {all} {foodfrom}. \"They are for the whole day,\" {R.he} said.",
                "There were {all} on the table, {foodfrom}. {A} was allowed to take them all.",
            ],
        ],
        &[
            &[
                "{A} went {road} and met {B}.",
                "At the corner stood {B} with empty hands.",
                "Halfway {road} {A} saw {B}, who was sitting on a stone.",
            ],
            &[
                "\"I am so hungry,\" said {B}. \"I have eaten nothing since yesterday.\"",
                "\"What is in your basket?\" asked {B}. {B.His} own basket had fallen into the river.",
                "{B} looked {sad}. \"{a beast} has stolen my lunch,\" {B.he} said.",
            ],
            &[
                "{A} thought about it. The {foods} were meant for the evening.",
                "At first {A} did not want to share. Then {A.he} saw how thin {B} was.",
                "\"What shall I do?\" thought {A}. \"If I give some away, I have fewer.\"",
            ],
            &[
                "\"Take {given},\" {A} said {kindly}. Now {left} {leftwas} left.",
                "So {A} gave {B} {given} and kept {left}.",
                "{A} counted aloud. {allnumber} take away {givennumber} is {leftnumber}. So {B} got {given}, and {left} {leftwas} left.",
            ],
            &[
                "{B} ate and was {glad}. \"I will not forget this,\" {B.he} said.",
                "\"Thank you,\" said {B}. \"One day I will give you something too.\"",
                "They ate together in the shade and told each other riddles.",
            ],
        ],
        &[
            &[
                "{days} days later a storm broke the trees, and {A} had nothing to eat.",
                "In winter, when {A} was ill and could not go out, someone knocked at the door.",
                "A week went by. Then {A} lost the basket with everything in it.",
            ],
            &[
                "There stood {B} with {more} in {B.his} arms.",
                "{B} came {road} and brought {more}.",
                "\"Now it is my turn,\" said {B}, and put {more} on the table.",
            ],
            &[
                "\"You gave me {givennumber},\" said {B}, \"and I give you {morenumber}.\"",
                "\"{all} and {more} make {total},\" {A} counted, \"but one friend is more than all of them.\"",
                "\"How many is that?\" asked {A.his} {R}. \"{allnumber} before and {morenumber} now,\" said {A}, \"so {totalnumber} in all.\"",
            ],
            &[
                "Whoever shares {a food} gets it back twice.",
                "What is given away is not lost.",
                "After that day they always shared, even when there was only one {food}.",
            ],
        ],
    ],
};

const NURSING: Plot = Plot {
    paragraphs: &[
        &[
            OPENING,
            WEATHER,
            &[
                "{road} {A} found {a patient} with {wound}.",
                "Something moved in the ditch. It was {a patient}, and it had {wound}.",
                "On the way home {A} heard a faint cry. There lay {a patient} with {wound}.",
            ],
        ],
        &[
            &[
                "{A} tried to lift it, but the {patient} was afraid and hid.",
                "{A} came closer, and the {patient} trembled.",
                "The {patient} looked at {A} and did not move.",
            ],
            &[
                "{A.he} ran to fetch {A.his} {R}. \"Can we save it?\" {A.he} asked.",
                "\"What does it need?\" {A} asked {A.his} {R}.",
                "{A.his} {R} came with a box and {a colour} blanket.",
            ],
            &[
                "\"It needs warmth, rest and {feed},\" {R.he} said.",
                "\"Perhaps,\" said {A.his} {R}. \"Keep it warm, and give it {feed} three times a day.\"",
                "{R.he} looked at it carefully. \"With {wound} it cannot feed itself. Bring it {feed}.\"",
            ],
            &[
                "{A} took it home and laid it beside the stove.",
                "They put the {patient} into a basket by the window.",
                "{A} gave it {A.his} own pillow.",
            ],
            &[
                "For {days} days {A} got up at night to look after it.",
                "On the first day it did not eat. On the second day it took a little {feed}. On the third day it was hungry.",
                "{B} came every afternoon and helped, and {B.he} brought fresh {feed}.",
                "Once the {patient} seemed so weak that {A} was {sad} all night.",
            ],
        ],
        &[
            &[
                "After {days} days it was well again.",
                "Slowly {wound} healed.",
                "Then one morning the {patient} was standing on its own.",
            ],
            &[
                "\"I would like to keep it,\" said {A}. \"It belongs outside,\" {A.his} {R} answered {kindly}.",
                "{A} wanted to keep it, but {A.he} knew that a wild heart needs the wide world.",
                "\"You must let it go now,\" said {A.his} {R}, and {R.he} put a hand on {A.his} shoulder.",
            ],
            &[
                "{A} opened the door. The {patient} {leave}.",
                "So they carried it {road}, and there it {leave}.",
                "{A} whispered goodbye, and the {patient} {leave}.",
            ],
            &[
                "In the next year it came back with two young ones.",
                "Sometimes, when {A} was {sad}, the {patient} came back to the garden.",
                "The next morning there was {a colour} feather on the doorstep, and nobody knew who had brought it.",
            ],
            &[
                "To care for someone also means to let go.",
                "{A} was {glad}, and a little sad as well.",
                "Small help, given every day, becomes great help.",
            ],
        ],
    ],
};

const FEAR: Plot = Plot {
    paragraphs: &[
        &[
            OPENING,
            &[
                "Only one thing could stop {A.him}: {A.he} was afraid of {fear}.",
                "But {A} was terribly afraid of {fear}, and nobody knew about it.",
                "{A} was not afraid of anything except {fear}.",
            ],
            WEATHER,
            &[
                "{A.his} {R} had forgotten {R.his} {thing} and could not work without it.",
                "{B} lay in bed with a fever and asked for {B.his} {colour} {thing}.",
                "Someone had to bring the {colour} {thing} to {A.his} {R} before dark.",
            ],
            &[
                "The only way led to {fearplace}.",
                "To get there, {A} had to pass {fearplace}.",
                "Between the house and the goal lay {fearplace}.",
            ],
        ],
        &[
            &[
                "{A} took ten steps, and {worse}. {A.he} ran back.",
                "On the first try {worse}, and {A} turned around.",
                "{A.his} knees shook. Then {worse}, and {A.he} was {sad}.",
            ],
            &[
                "\"I cannot do it,\" {A.he} said to {A.his} {R}.",
                "\"Are you afraid as well sometimes?\" {A.he} asked {A.his} {R}.",
                "{A.he} sat down on the step, and {A.his} {R} sat down beside {A.him}.",
            ],
            &[
                "\"Everyone is afraid,\" {R.he} said {kindly}. \"Brave is who goes on all the same.\"",
                "\"When I was small, I was afraid of {fear} too,\" {R.he} said {kindly}.",
                "\"Fear is a bad leader,\" said {A.his} {R}, \"but it may walk behind you.\"",
            ],
            &[
                "{A} held the {thing} tightly and went off again.",
                "So {A.he} took the {colour} {thing} and tried a second time.",
                "\"Once more,\" said {A} to {A.himself}.",
            ],
        ],
        &[
            &[
                "Again {worse}. This time {A.he} {trick}.",
                "When {worse}, {A.he} did not run. {A.He} {trick}.",
                "{A.his} heart was beating fast, but {A.he} {trick}.",
            ],
            &[
                "And behold, {truth}.",
                "Then {A.he} noticed that {truth}.",
                "After a while {A.he} understood that {truth}.",
            ],
            &[
                "The {thing} arrived in time, and {A} was {glad}.",
                "{A} came back with shining eyes and without the {thing}, because it was where it belonged.",
                "\"You did it!\" cried {B} when {B.he} saw {A} with the {colour} {thing}.",
            ],
            &[
                "Since then {fear} has been only half as bad.",
                "{A} was still a little afraid of {fear}, but now {A.he} knew what to do.",
                "That night {A.he} told {B} everything, and {B.he} said, \"I am afraid of geese.\"",
                "Courage is not the end of fear but the step after it.",
            ],
        ],
    ],
};

const QUARREL: Plot = Plot {
    paragraphs: &[
        &[
            OPENING,
            &[
                "{A.his} best friend was {B}, {a trait} {B.boy} as well.",
                "{B} lived next door, and the two did everything together.",
                "Every day after school {A} played with {B}.",
            ],
            WEATHER,
            &[
                "{road} they found {a colour} {thing}.",
                "An old sailor gave them {a colour} {thing}, but only one.",
                "In a box in the attic lay {a colour} {thing}.",
            ],
        ],
        &[
            &[
                "\"I saw it first,\" said {A}. \"No, I did,\" said {B}.",
                "\"It is mine!\" cried {A}. \"It is mine!\" cried {B}.",
                "Both wanted to have the {thing}, and neither wanted to wait.",
            ],
            &[
                "They pulled at it from both sides until it broke.",
                "{A} held one end and {B} held the other. Then there was a loud crack.",
                "{B} pushed, {A} slipped, and the {thing} fell to the ground and broke.",
            ],
            &[
                "\"That was your fault,\" said {B} and went home {road}.",
                "{A} shouted that {A.he} never wanted to see {B} again.",
                "Neither of them said a word. Each took one half and left.",
            ],
            &[
                "For {days} days they did not speak to each other.",
                "In the evening {A} sat at the window and was {sad}.",
                "The days were long, and {A} had nobody to play with.",
            ],
        ],
        &[
            &[
                "\"What use is half {a thing}?\" asked {A.his} {R}.",
                "\"Who of you was right?\" asked {A.his} {R}. \"Neither,\" {A} answered after a while.",
                "{A.his} {R} looked at the broken {thing}. \"Glue mends wood,\" {R.he} said, \"but what mends a friendship?\"",
            ],
            &[
                "{A} took {A.his} half and went to the house of {B}.",
                "So {A} picked some flowers and knocked on the door of {B}.",
                "On the way to {B}, {A} met {B.him}, for {B.he} had set out too.",
            ],
            &[
                "\"I am sorry,\" said {A}. \"I am sorry too,\" said {B}.",
                "\"I was wrong,\" {A} said {kindly}, and {B} gave {A.him} {B.his} hand.",
                "\"Let us mend it together,\" said {B} before {A} could say anything.",
            ],
            &[
                "They mended the {thing} and painted it {othercolour}.",
                "With glue and string they put the two halves together. Now the {colour} {thing} had {a othercolour} stripe.",
                "They worked until evening, and then the {thing} was whole again.",
            ],
            &[
                "On even days it belonged to {A} and on odd days to {B}.",
                "{A} {used} first, and then it was the turn of {B}.",
                "When they shared it, both were {glad}.",
            ],
            &[
                "It was no longer new, but it was theirs.",
                "A friend is harder to find than {a thing}.",
                "The first word after a quarrel is the hardest and the best.",
            ],
        ],
    ],
};

const LEARNING: Plot = Plot {
    paragraphs: &[
        &[
            OPENING,
            &[
                "All the other children could {skill}, but {A} could not.",
                "More than anything {A.he} wanted to learn how to {skill}.",
                "Whenever {A} saw someone {skilling}, {A.he} stopped to watch.",
            ],
            WEATHER,
            &[
                "\"In {days} days there is a feast,\" said {A.his} {R}. \"Everyone will show something.\"",
                "A teacher came to the school and asked, \"Who can {skill}?\"",
                "\"Today I begin,\" said {A}.",
            ],
        ],
        &[
            &[
                "The first time {A} {failed}. The second time {A.he} {failed} again.",
                "{A} tried it alone and {failed}.",
                "{A} started with great hopes. {A.he} {failed}, and the others laughed.",
            ],
            &[
                "\"I will never learn it,\" {A.he} said. {A.he} was {sad}.",
                "{A} threw {A.his} {thing} into the corner and was {sad}.",
                "{A} hid behind the shed so that nobody saw {A.him}.",
            ],
            &[
                "{B} had been watching. \"It took me {days} days,\" {B.he} said.",
                "Then {B}, who could {skill} very well, sat down beside {A.him}.",
                "\"Shall I tell you the secret?\" asked {B}.",
            ],
            &[
                "\"You must {advice},\" said {B}.",
                "\"It is easy to say and hard to do,\" {B} said {kindly}. \"You have to {advice}.\"",
                "{B} showed it once and said, \"Remember to {advice}.\"",
            ],
        ],
        &[
            &[
                "{A} practised every day, in the morning before breakfast and in the evening before bed.",
                "Every day was a little better than the day before.",
                "On the first day it worked once, on the second day twice, and on the third day {days} times.",
            ],
            &[
                "Sometimes {A.he} still {failed}, but {A.he} only laughed and began again.",
                "{B} came each afternoon and counted the mistakes: nine, then five, then two.",
                "\"Slower,\" said {B}, and {A} slowed down.",
            ],
            &[
                "Then the great day came. Everyone looked at {A}, and {A.his} hands were cold.",
                "At the feast {A} was the last. {A.he} took a deep breath.",
                "{A.his} {R} sat in the first row with {a colour} flower on {R.his} coat.",
            ],
            &[
                "{A} remembered the words of {B} and {shown}.",
                "And {A} {shown}.",
                "It became very quiet while {A} {shown}.",
            ],
            &[
                "\"Who taught you?\" people asked, and {A} pointed to {B}.",
                "{B} clapped the loudest, for {B.he} was {glad}.",
                "{A.his} {R} was so {glad} that {R.he} forgot to clap.",
            ],
            &[
                "Nobody can {skill} on the first day.",
                "Next year {A} will teach someone else {skilling}.",
                "A mistake is a stair, and whoever climbs many stairs comes out on top.",
            ],
        ],
    ],
};

const TRADE: Plot = Plot {
    paragraphs: &[
        &[
            OPENING,
            WEATHER,
            &[
                "{A.his} {R} sent {A.him} to the market with {all} to sell.",
                "\"Take these {foods} and bring back {a thing},\" said {A.his} {R}, and put {all} into a sack.",
                "They needed {a thing} at home, and all they had was {all}.",
            ],
        ],
        &[
            &[
                "{road} {A} met a miller whose cart was stuck in the mud.",
                "By the road sat an old soldier with a torn coat.",
                "At the bridge a fisher was looking for a lost net.",
            ],
            &[
                "{A} stopped and helped, although it was late, and got a bag of {first} for it.",
                "\"Help me, and this {first} shall be yours,\" said the stranger. {A} helped.",
                "It took an hour, and the thanks were a little {first} in a cloth.",
            ],
            &[
                "A little later {B} came along. \"We need {first} at home,\" {B.he} said, \"and I have {second}.\" They traded.",
                "{B} had too much {second} and no {first}, so the two traded.",
                "\"You have {first}!\" said {B}. \"I will give you {second} for it.\" {A} agreed.",
            ],
            &[
                "At the market a baker wanted the {second} and paid with {more}.",
                "The woman at the first stall had no use for {second}. The man at the second stall gave {more} for it.",
                "A cook gave {A.him} {more} for the {second}.",
            ],
            &[
                "Now {A} had {total}, because {allnumber} and {morenumber} make {totalnumber}.",
                "{A} counted them twice. There were {total} now.",
                "\"{allnumber} and {morenumber},\" {A} counted, \"that makes {totalnumber}.\"",
            ],
        ],
        &[
            &[
                "At the last stall hung {a colour} {thing}. \"What does it cost?\" asked {A}.",
                "Then {A.he} saw it: {a colour} {thing}, just right for {purpose}.",
                "{A} chose {a colour} {thing} and asked for the price.",
            ],
            &[
                "\"{total},\" said the trader, and {A} gave them all.",
                "\"For you {total},\" said the trader. That was exactly what {A} had.",
                "The trader wanted {total}, not one more and not one less.",
            ],
            &[
                "At home {A.his} {R} was {glad} when {R.he} saw the {thing}.",
                "{A.his} {R} turned the {colour} {thing} in {R.his} hands. \"How did you do that?\" {R.he} asked.",
                "\"That is a fine {thing},\" said {A.his} {R}, \"much better than {all}.\"",
            ],
            &[
                "\"I only helped someone,\" said {A}, \"and then one thing led to the next.\"",
                "{A} told about the stranger, about {B}, and about the {second}.",
                "The next morning {A} went to {B} and showed {B.him} the {thing}.",
            ],
            &[
                "Whoever stops for others does not come too late.",
                "A little {first} and a kind heart go a long way.",
                "And if the {thing} is not broken, they still have it today.",
            ],
        ],
    ],
};
