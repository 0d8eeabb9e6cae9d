"""English words of picture prompts by what they say: the vocabulary of editing/edit_kind.py.

The lists are short on purpose. What they lack is read off the sentence's structure.
"""


def _set(text: str) -> frozenset:
    return frozenset(text.split())


DETERMINERS = _set("""
    a an the this that these those its his her their my your our some any each every another other no""")
GROUND_PREPOSITIONS = _set("""
    in on at against by near inside outside under above over through across along amid among behind before beside
    beneath below into onto""")
LEADS = _set("""
    with without wearing holding carrying riding having plus featuring containing including and or next""")
FUNCTION = DETERMINERS | GROUND_PREPOSITIONS | LEADS | _set(
    "of to from for is are was were be being been has have it who which as very so really quite while there front top "
    "between around up down side")
ABSENT = _set("without no")
"""They say that what follows is not there."""
POSITIONS = _set("""
    in on under above over behind beside beneath below near inside outside front top between left right""")

COLOURS = _set("""
    red orange yellow green blue purple violet pink brown black white grey gray cyan magenta teal turquoise beige
    golden gold silver crimson scarlet maroon navy indigo lavender lilac ivory cream tan bronze copper olive lime
    mint coral salmon amber emerald ruby sapphire khaki mauve burgundy blonde blond brunette ginger auburn rainbow
    colorful colourful multicolored multicoloured pastel neon dark light bright pale""")
MATERIALS = _set("""
    wood wooden metal metallic steel iron brass glass crystal stone marble granite concrete brick clay ceramic
    porcelain plastic rubber leather fur furry fluffy hairy wool woolen woollen knitted crochet cotton silk velvet
    denim lace felt fabric cloth paper cardboard origami wax chocolate candy gummy jelly ice icy frozen diamond
    chrome rusty rusted mossy feathered scaly striped dotted spotted checkered plaid patterned floral plain polka-dot
    tartan camouflage glittery sparkly shiny matte glossy transparent translucent lego plush straw bamboo wicker
    mosaic-tiled embroidered quilted burnt rough smooth cracked""")
STYLES = _set("""
    watercolor watercolour anime manga cartoon comic sepia mosaic monochrome impressionist impressionism
    expressionist expressionism cubist cubism surreal surrealist surrealism minimalist minimalism pixel pixelated
    8-bit 16-bit 3d low-poly lowpoly cyberpunk steampunk vaporwave baroque rococo renaissance gothic art-deco pop-art
    ukiyo-e ghibli pixar disney photorealistic realistic hyperrealistic cgi claymation pointillism pointillist
    vintage retro noir cinematic abstract charcoal pastel-drawing ink pencil crayon gouache acrylic oil-painting
    stylized stylised style styled styles 35mm dslr polaroid bokeh hdr grainy""")
ARTISTS = _set("""
    van-gogh gogh monet picasso rembrandt dali hokusai klimt munch vermeer matisse kandinsky warhol mucha rutkowski
    banksy miyazaki hopper cezanne renoir degas caravaggio titian basquiat""")
FIGURES = _set("sculpture statue statuette figurine")
MEDIA = FIGURES | _set("""
    photo photograph photography picture image painting drawing sketch portrait illustration artwork art render
    rendering engraving etching woodcut print poster snapshot screenshot fresco mural tapestry graffiti collage
    doodle oil stained""")
"""They say the style before "of" or between commas. Elsewhere they are things: "a painting on the wall"."""
STANCES = _set("""
    standing sitting lying jumping running walking flying sleeping swimming dancing smiling laughing crying
    crouching kneeling tilted upright bent raised open opened closed crossed folded sideways upside-down inverted
    rotated leaning awake asleep seated crouched perched curled stretched facing turned sad happy angry surprised
    scared smile frown happily sadly big small tiny huge giant large little tall short fat thin slim skinny chubby
    long wide narrow old young elderly muscular left right""")
"""Poses, expressions, sizes and ages: a change of geometry."""
BODY = _set("arm leg hand eye ear mouth head hair face wing tail tongue beak paw fist finger knee lips feet")
NO_POSE = _set("""
    painting drawing building ring king wing string spring morning evening ceiling clothing earring wedding
    lightning lighting thing nothing something everything swing pudding icing lettering flooring duckling dumpling
    sibling viking sting railing during following wearing holding carrying riding having featuring containing
    including rendering engraving etching sterling herring bling being darling stocking pling""")
PLACES = _set("""
    background backdrop scenery landscape beach desert forest woods jungle garden park field meadow lawn grass
    grassland prairie farm vineyard mountain mountains hill hills valley canyon cliff cave lake pond river ocean sea
    seaside shore coast island waterfall swamp sky space moon mars underwater street road highway alley path
    sidewalk city town village downtown cityscape skyline square plaza market room bedroom kitchen bathroom
    livingroom office studio library classroom school hospital museum church temple castle palace stadium gym
    theater theatre stage restaurant cafe bar shop store supermarket garage warehouse factory station airport subway
    train harbor harbour bridge rooftop balcony porch yard backyard courtyard playground pool wall floor sand brick
    bricks snow rain fog mist water countryside wilderness galaxy ruins graveyard zoo aquarium greenhouse hallway
    corridor lobby tokyo paris london venice rome egypt japan indoors outdoors""")
TIMES = _set("""
    night nighttime day daytime daylight sunset sunrise dawn dusk twilight midnight noon winter summer autumn spring
    fall rainy snowy sunny foggy misty cloudy stormy raining snowing thunderstorm storm moonlight sunlight rain snow
    fog mist christmas halloween morning evening""")
SCENES = _set("weather light lighting scene clouds skies season time atmosphere view surroundings wonderland")
"""What a time describes, besides places: "rainy weather"."""
ADJECTIVE_ENDINGS = ("y", "ed", "en", "ous", "ful", "less", "al", "ish", "ive", "ic", "ant", "ent", "able", "ible")
NO_ADJECTIVES = _set("""
    puppy kitty bunny pony monkey turkey donkey butterfly baby lady boy body candy berry cherry strawberry blueberry
    raspberry daisy lily pansy poppy teddy penny party lorry ferry city country sky toy key whiskey honey jelly
    family army navy daddy mummy fairy chicken kitten oven garden queen men women children maiden pen hen raven bed
    seed weed shed sled crystal animal mammal metal medal pedal petal portal hospital fish dish starfish goldfish
    jellyfish radish olive hive music picnic elephant plant giant tent student present vegetable table cable bible
    croissant restaurant pants robot taxi""")

ENGLISH = (FUNCTION - _set("as so an to me on no")) | _set("the photo picture of with")
FOREIGN = _set("""
    un la le en ein eine einer einem einen der das dem den und auf mit vor unter neben im um une des les du au aux
    et avec sur dans sous el una unos con sin del y il lo gli dello della di e o uma os com sem em na het
    een de met op jeg og pa ett och pod ma je""")
"""Function words of other languages in Latin letters, without those of English names and tags, as "van" and "las"."""
