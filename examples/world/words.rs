//! The tables of the world: everything the model can know, in single words.

/// Countries and their capitals.
#[rustfmt::skip]
pub const CAPITALS: &[(&str, &str)] = &[
    ("France", "Paris"), ("Germany", "Berlin"), ("Spain", "Madrid"), ("Italy", "Rome"),
    ("Portugal", "Lisbon"), ("Norway", "Oslo"), ("Sweden", "Stockholm"), ("Finland", "Helsinki"),
    ("Denmark", "Copenhagen"), ("Poland", "Warsaw"), ("Austria", "Vienna"), ("Hungary", "Budapest"),
    ("Greece", "Athens"), ("Turkey", "Ankara"), ("Russia", "Moscow"), ("Ukraine", "Kyiv"),
    ("Romania", "Bucharest"), ("Bulgaria", "Sofia"), ("Serbia", "Belgrade"), ("Croatia", "Zagreb"),
    ("Ireland", "Dublin"), ("England", "London"), ("Scotland", "Edinburgh"),
    ("Iceland", "Reykjavik"), ("Belgium", "Brussels"), ("Estonia", "Tallinn"), ("Latvia", "Riga"),
    ("Lithuania", "Vilnius"), ("Albania", "Tirana"), ("Cyprus", "Nicosia"), ("Malta", "Valletta"),
    ("Japan", "Tokyo"), ("China", "Beijing"), ("Thailand", "Bangkok"), ("Vietnam", "Hanoi"),
    ("Nepal", "Kathmandu"), ("Iran", "Tehran"), ("Iraq", "Baghdad"), ("Jordan", "Amman"),
    ("Syria", "Damascus"), ("Lebanon", "Beirut"), ("Qatar", "Doha"), ("Oman", "Muscat"),
    ("Pakistan", "Islamabad"), ("Egypt", "Cairo"), ("Morocco", "Rabat"), ("Algeria", "Algiers"),
    ("Tunisia", "Tunis"), ("Libya", "Tripoli"), ("Kenya", "Nairobi"), ("Ghana", "Accra"),
    ("Nigeria", "Abuja"), ("Senegal", "Dakar"), ("Uganda", "Kampala"), ("Angola", "Luanda"),
    ("Zambia", "Lusaka"), ("Mali", "Bamako"), ("Canada", "Ottawa"), ("Cuba", "Havana"),
    ("Peru", "Lima"), ("Chile", "Santiago"), ("Brazil", "Brasilia"), ("Colombia", "Bogota"),
    ("Ecuador", "Quito"), ("Australia", "Canberra"),
];

/// Countries and their language.
#[rustfmt::skip]
pub const LANGUAGES: &[(&str, &str)] = &[
    ("France", "French"), ("Germany", "German"), ("Spain", "Spanish"), ("Italy", "Italian"),
    ("Portugal", "Portuguese"), ("Norway", "Norwegian"), ("Sweden", "Swedish"),
    ("Denmark", "Danish"), ("Poland", "Polish"), ("Austria", "German"), ("Hungary", "Hungarian"),
    ("Greece", "Greek"), ("Turkey", "Turkish"), ("Russia", "Russian"), ("Ukraine", "Ukrainian"),
    ("Romania", "Romanian"), ("England", "English"), ("Australia", "English"),
    ("Japan", "Japanese"), ("China", "Chinese"), ("Thailand", "Thai"), ("Egypt", "Arabic"),
    ("Syria", "Arabic"), ("Brazil", "Portuguese"), ("Cuba", "Spanish"), ("Chile", "Spanish"),
];

/// Countries and their continent.
#[rustfmt::skip]
pub const CONTINENTS: &[(&str, &str)] = &[
    ("France", "Europe"), ("Germany", "Europe"), ("Spain", "Europe"), ("Italy", "Europe"),
    ("Norway", "Europe"), ("Sweden", "Europe"), ("Poland", "Europe"), ("Greece", "Europe"),
    ("Ireland", "Europe"), ("Iceland", "Europe"), ("Belgium", "Europe"), ("Japan", "Asia"),
    ("China", "Asia"), ("Thailand", "Asia"), ("Vietnam", "Asia"), ("Nepal", "Asia"),
    ("Iran", "Asia"), ("Iraq", "Asia"), ("Jordan", "Asia"), ("Pakistan", "Asia"),
    ("Egypt", "Africa"), ("Morocco", "Africa"), ("Kenya", "Africa"), ("Ghana", "Africa"),
    ("Nigeria", "Africa"), ("Senegal", "Africa"), ("Uganda", "Africa"), ("Angola", "Africa"),
    ("Mali", "Africa"), ("Canada", "America"), ("Cuba", "America"), ("Peru", "America"),
    ("Chile", "America"), ("Brazil", "America"),
];

/// Animals and the name of their young.
#[rustfmt::skip]
pub const YOUNG: &[(&str, &str)] = &[
    ("dog", "puppy"), ("cat", "kitten"), ("cow", "calf"), ("horse", "foal"), ("sheep", "lamb"),
    ("pig", "piglet"), ("goat", "kid"), ("bear", "cub"), ("hen", "chick"), ("duck", "duckling"),
    ("goose", "gosling"), ("swan", "cygnet"), ("deer", "fawn"), ("kangaroo", "joey"),
    ("frog", "tadpole"), ("owl", "owlet"), ("hare", "leveret"), ("eagle", "eaglet"),
    ("wolf", "pup"), ("fox", "kit"),
];

/// Words and their opposites, each pair meant in both directions.
#[rustfmt::skip]
pub const OPPOSITES: &[(&str, &str)] = &[
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("old", "new"), ("high", "low"),
    ("light", "dark"), ("wet", "dry"), ("full", "empty"), ("rich", "poor"), ("strong", "weak"),
    ("early", "late"), ("long", "short"), ("hard", "soft"), ("loud", "quiet"), ("happy", "sad"),
    ("open", "closed"), ("clean", "dirty"), ("thick", "thin"), ("near", "far"), ("left", "right"),
    ("good", "bad"),
];

/// Things and their colour.
#[rustfmt::skip]
pub const COLOURS: &[(&str, &str)] = &[
    ("grass", "green"), ("snow", "white"), ("coal", "black"), ("blood", "red"), ("milk", "white"),
    ("gold", "yellow"), ("chocolate", "brown"), ("butter", "yellow"), ("spinach", "green"),
    ("ketchup", "red"), ("mustard", "yellow"), ("rice", "white"), ("coffee", "brown"),
    ("tar", "black"), ("cement", "grey"),
];

/// Animals and how many legs they have.
#[rustfmt::skip]
pub const LEGS: &[(&str, &str)] = &[
    ("dog", "4"), ("cat", "4"), ("horse", "4"), ("cow", "4"), ("duck", "2"), ("hen", "2"),
    ("spider", "8"), ("fly", "6"), ("bee", "6"), ("beetle", "6"), ("crab", "10"), ("snake", "0"),
];

/// The days of the week in order.
pub const DAYS: &[&str] =
    &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// The months in order.
pub const MONTHS: &[&str] = &[
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Cities besides the capitals, for the weather.
pub const MORE_CITIES: &[&str] = &[
    "Munich", "Hamburg", "Milan", "Venice", "Naples", "Lyon", "Nice", "Seville", "Porto", "Bergen",
    "Geneva", "Zurich", "Krakow", "Kyoto", "Osaka", "Boston", "Chicago", "Denver", "Dallas",
    "Seattle", "Toronto", "Sydney", "Perth", "Mumbai", "Lagos",
];

/// What codes are kept under.
#[rustfmt::skip]
pub const KEYS: &[&str] = &[
    "amber", "azure", "crimson", "scarlet", "violet", "indigo", "purple", "orange", "pink",
    "silver", "bronze", "copper", "ruby", "emerald", "sapphire", "topaz", "opal", "jade", "pearl",
    "diamond", "quartz", "onyx", "garnet", "marble", "granite", "slate", "coral", "ivory", "tiger",
    "lion", "zebra", "camel", "panda", "otter", "badger", "rabbit", "beaver", "falcon", "raven",
    "robin", "parrot", "penguin", "turtle", "lizard", "salmon", "shark", "whale", "dolphin",
    "lobster", "apple", "banana", "cherry", "grape", "lemon", "mango", "melon", "olive", "peach",
    "pear", "plum", "papaya", "apricot", "walnut", "almond",
];

/// The codes.
#[rustfmt::skip]
pub const CODES: &[&str] = &[
    "hammer", "chisel", "saw", "drill", "ladder", "shovel", "rake", "anvil", "anchor", "arrow",
    "basket", "bell", "blanket", "bottle", "bucket", "candle", "carpet", "castle", "circle",
    "cotton", "feather", "flute", "forest", "garden", "guitar", "harbor", "helmet", "island",
    "jacket", "kettle", "lantern", "magnet", "mirror", "needle", "ocean", "paper", "pencil",
    "piano", "pillow", "planet", "pocket", "rocket", "saddle", "shadow", "spoon", "thunder",
    "ticket", "tunnel", "velvet", "violin", "wagon", "willow", "window", "winter", "zigzag",
];

/// Who does something in a filler sentence.
pub const PEOPLE: &[&str] = &[
    "farmer", "baker", "teacher", "doctor", "sailor", "painter", "driver", "singer", "child",
    "woman", "man", "writer",
];

/// What they are like.
pub const TRAITS: &[&str] = &["old", "young", "tall", "happy", "quiet", "strong", "kind", "tired"];

/// What they do, with an object.
pub const DEEDS: &[&str] =
    &["walked to", "looked at", "came from", "talked about", "waited near", "drove to"];

/// Where or about what.
pub const PLACES: &[&str] = &[
    "river", "house", "market", "bridge", "school", "church", "field", "station", "village",
    "lake", "tower", "shop",
];

/// When.
pub const TIMES: &[&str] = &["today", "again", "at noon", "at night", "in spring", "with a friend"];

/// What invented names are made of.
pub const SYLLABLES: &[&str] = &[
    "ba", "be", "bo", "da", "del", "do", "fa", "fen", "ga", "gor", "ka", "kel", "ko", "la", "lin",
    "lo", "ma", "mi", "mor", "na", "nel", "no", "pa", "pel", "ra", "ri", "ron", "sa", "sel", "so",
    "ta", "ti", "tor", "va", "vel", "vi", "wen", "za", "zel", "zo",
];
