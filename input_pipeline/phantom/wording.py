"""Wording of the phantom's reports: names of findings, sentences and whole normal reports."""

# Names of the findings. A slot that stays empty takes its blank along. {side} is "left",
# {zone} an adjective ("left basal"), {place} a phrase with the side ("in the left lower zone").
NAMES = {
  "effusion": (
    "a {size} {side} pleural effusion",
    "a {size} {side} effusion",
    "{size} {side} pleural fluid",
    "{size} blunting of the {side} costophrenic angle",
  ),
  "consolidation": (
    "{size} {side} {zone} consolidation",
    "a {size} airspace opacity {place}",
    "{size} {side} {zone} airspace disease",
    "a {size} infiltrate {place}",
    "{size} pneumonic opacification {place}",
  ),
  "nodule": (
    "a {size} nodule {place}",
    "a {size} {side} {zone} pulmonary nodule",
    "a {size} nodular density {place}",
    "a {size} coin lesion {place}",
  ),
  "mass": (
    "a {size} mass {place}",
    "a {size} {side} {zone} lung mass",
    "a {size} mass-like opacity {place}",
    "a {size} space-occupying lesion {place}",
  ),
  "pneumothorax": (
    "a {size} {side} pneumothorax",
    "a {size} {side} apical pneumothorax",
    "{size} {side} apical pleural air",
    "a {size} pneumothorax on the {side}",
  ),
  "atelectasis": (
    "{size} linear atelectasis {place}",
    "{size} {side} {zone} plate-like atelectasis",
    "a {size} band-like opacity {place}",
    "{size} {side} {zone} subsegmental collapse",
  ),
  "cardiomegaly": (
    "{size} cardiomegaly",
    "{size} enlargement of the heart",
    "{size} enlargement of the cardiac silhouette",
    "{size} cardiac enlargement",
  ),
  "edema": (
    "{size} interstitial edema",
    "{size} bilateral pulmonary edema",
    "{size} bilateral perihilar haze",
    "{size} pulmonary vascular congestion",
  ),
  "tube": (
    "an endotracheal tube above the carina",
    "an ET tube in the midline",
    "a tracheal tube above the carina",
    "an endotracheal tube in the trachea",
  ),
  "pacemaker": (
    "a {side} pectoral pacemaker",
    "a {side} chest wall pacemaker with a lead",
    "a {side} cardiac device generator",
    "a pulse generator over the {side} upper chest",
  ),
  "fracture": (
    "a {size} fracture of the {side} {rib} rib",
    "a {size} {side} rib fracture",
    "a {size} cortical break of the {side} {rib} rib",
    "a {size} {side} {zone} rib fracture",
  ),
  "hernia": (
    "a {size} hiatal hernia",
    "a {size} hiatus hernia",
    "a {size} retrocardiac air-fluid level",
    "a {size} intrathoracic stomach",
  ),
}
BOTH_EFFUSIONS = (
  "{size} bilateral pleural effusions",
  "{size} bilateral effusions",
  "{size} pleural fluid on both sides",
  "{size} blunting of both costophrenic angles",
)
SMALL_TO_LARGE = ("small", "moderate", "large")
SIZES = {
  "nodule": ("tiny", "small", "larger"),
  "mass": ("moderate", "large", "bulky"),
  "atelectasis": ("short", "minor", "long"),
  "cardiomegaly": ("mild", "moderate", "marked"),
  "edema": ("mild", "moderate", "extensive"),
  "fracture": ("slightly displaced", "displaced", "widely displaced"),
}
RIBS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
ZONES = (("upper zone", "upper lung"), ("mid zone", "mid lung"), ("lower zone", "basal"))
PLACES = (
  ("in the {side} upper zone", "in the {side} upper lung"),
  ("in the {side} mid zone", "in the {side} mid lung"),
  ("in the {side} lower zone", "at the {side} base"),
)

CERTAIN = (
  "There is {name}.",
  "{name} is seen.",
  "{name} is present.",
  "The film shows {name}.",
  "{name} is noted.",
)
UNSURE = (
  "Possible {bare}.",
  "There may be {name}.",
  "{name} cannot be excluded.",
  "Findings suspicious for {name}.",
  "Questionable {bare}.",
)
IMPRESSIONS = ("{bare}.", "{bare} as described.", "Findings consistent with {name}.")
UNSURE_IMPRESSIONS = ("Possible {bare}.", "Probable {bare}.")

# Denials with the findings that they deny; each is used only where all of them are absent.
DENIALS = (
  ("No pleural effusion or pneumothorax.", ("effusion", "pneumothorax")),
  ("There is no pleural effusion or pneumothorax.", ("effusion", "pneumothorax")),
  ("No pneumothorax is seen.", ("pneumothorax",)),
  ("There is no pleural fluid.", ("effusion",)),
  ("There is no focal consolidation.", ("consolidation",)),
  ("No airspace opacity or pulmonary edema.", ("consolidation", "edema")),
  ("No suspicious pulmonary nodule or mass.", ("nodule", "mass")),
  ("There is no pulmonary vascular congestion.", ("edema",)),
  ("No displaced rib fracture is identified.", ("fracture",)),
  ("No linear atelectasis.", ("atelectasis",)),
  ("The heart size is normal.", ("cardiomegaly",)),
  ("The cardiac silhouette is not enlarged.", ("cardiomegaly",)),
  ("There is no hiatal hernia.", ("hernia",)),
)
# Statements on anatomy that deny no finding by name, with the findings that would make them false.
LUNG_FINDINGS = ("consolidation", "nodule", "mass", "atelectasis", "edema", "pneumothorax")
NORMAL = (
  ("The lungs are clear.", LUNG_FINDINGS + ("effusion",)),
  ("The mediastinal contours are within normal limits.", ("hernia", "cardiomegaly")),
  ("The bony thorax is intact.", ("fracture",)),
  ("The pulmonary vasculature is unremarkable.", ("edema",)),
  ("The costophrenic angles are sharp.", ("effusion",)),
)
FILLERS = (
  "Clinical correlation is recommended.",
  "Comparison is made with the prior study.",
  "Single frontal view of the chest was obtained.",
  "The technique is adequate for interpretation.",
  "No prior films are available for comparison.",
)
ADVICE = (
  "Clinical correlation is recommended.",
  "Follow-up radiograph is recommended.",
  "Findings were discussed with the referring physician.",
  "Computed tomography may be considered if clinically indicated.",
)
# Whole reports of normal images: their exact repetition is part of the problem.
NORMAL_REPORTS = (
  (
    (
      "The heart size is normal.",
      "The lungs are clear.",
      "No pleural effusion or pneumothorax.",
      "The bony thorax is intact.",
    ),
    ("No acute cardiopulmonary abnormality.",),
  ),
  (
    (
      "Single frontal view of the chest was obtained.",
      "The lungs are clear.",
      "There is no pleural effusion or pneumothorax.",
      "The mediastinal contours are within normal limits.",
    ),
    ("Normal chest radiograph.",),
  ),
  (
    (
      "The heart size is normal.",
      "There is no focal consolidation.",
      "No pneumothorax is seen.",
      "There is no pleural fluid.",
      "Comparison is made with the prior study.",
    ),
    ("No acute disease.",),
  ),
)
NORMAL_IMPRESSIONS = ("No acute cardiopulmonary abnormality.", "No acute disease.")
