"""The segments that `segmentql load-demo` makes up: what they are for, how large they get, and by whose hand."""

from dataclasses import dataclass

GROWTH, CRM, SUPPORT, PRICING = "growth-batch", "crm", "support", "pricing-service"
RISK, SELLERS, SIGN_UP, ADMIN = "risk-engine", "sellers-team", "sign-up", "product-admin"
# Between which hours of the day, in UTC, each is at work: batches by night, people by day.
HOURS = {
    GROWTH: (2, 4),
    CRM: (8, 18),
    SUPPORT: (6, 21),
    PRICING: (0, 24),
    RISK: (0, 24),
    SELLERS: (9, 17),
    SIGN_UP: (5, 23),
    ADMIN: (9, 17),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of a segment. Days are counted back from today."""

    slug: str
    description: str
    # How many times a user is put into it, of 100 000 users.
    adds: int
    client: str
    created: int
    # Days that a membership may last; none: for good.
    ttl: tuple[int, ...] = ()
    # Which part of the memberships somebody ends.
    leaving: float = 0.08
    # (day, percent), in the order of time; None ends it. Nobody is removed from such a segment.
    rollouts: tuple[tuple[int, float | None], ...] = ()
    deleted: int | None = None


# Everybody is put into it on signing up.
WELCOME = "AVITO_WELCOME"
# Whoever gets into it leaves all segments that do not last.
OPT_OUT = "AVITO_MARKETING_OPT_OUT"

PLANS = (
    Plan("AVITO_DELIVERY", "Sees listings with delivery first.", 33_500, GROWTH, 364),
    Plan("AVITO_VOICE_MESSAGES", "May send voice messages in chats.", 34_000, GROWTH, 361),
    Plan("AVITO_NEW_SEARCH", "Searches with the ranking of this year.", 31_500, GROWTH, 302, leaving=0.03),
    Plan(WELCOME, "New here: tips and a free promotion in the first two weeks.", 0, SIGN_UP, 364, (14,), 0.02),
    Plan("AVITO_DISCOUNT_30", "30 % off paid promotion.", 11_000, PRICING, 340, (30, 60)),
    Plan("AVITO_PUSH_DIGEST", "Gets the weekly digest as a push message.", 8_000, CRM, 355, leaving=0.25),
    Plan(
        "AVITO_DISCOUNT_50",
        "50 % off paid promotion, for those who have not come for long.",
        6_500,
        PRICING,
        333,
        (5, 14),
    ),
    Plan("AVITO_ACTIVE_BUYER", "Bought something in the last 30 days.", 6_000, GROWTH, 358, (30,), 0.01),
    Plan("AVITO_SAVED_SEARCHES", "May save more than ten searches.", 6_000, GROWTH, 280),
    Plan("AVITO_PRO_SELLER", "Sells for a living: statistics and bulk editing.", 3_800, SELLERS, 362, leaving=0.12),
    Plan("AVITO_CASHBACK_5", "5 % of each purchase come back as bonus.", 3_600, CRM, 250, (30, 90)),
    Plan(
        "AVITO_BIG_SALE",
        "A campaign: banners and free delivery.",
        3_200,
        CRM,
        320,
        (14, 30),
        deleted=210,
    ),
    Plan("AVITO_CART_REMINDER", "Left something in the cart: one reminder a day.", 2_800, CRM, 230, (5, 7)),
    Plan("AVITO_VIDEO_LISTINGS", "May add a video to a listing.", 2_400, GROWTH, 190),
    Plan("AVITO_CAR_CHECK", "Sees a car's history before calling the seller.", 2_100, GROWTH, 340),
    Plan("AVITO_TRUSTED_SELLER", "Many good reviews: the badge is shown.", 1_900, SELLERS, 357, leaving=0.1),
    Plan("AVITO_RENT_SAFE", "May pay rent and deposit in escrow.", 1_700, GROWTH, 260),
    Plan("AVITO_REVIEW_PROMPT", "Is asked for a review after a deal.", 1_500, CRM, 310, (7, 14), 0.05),
    Plan("AVITO_PRICE_HINTS", "Sees what similar things were sold for.", 1_400, GROWTH, 150),
    Plan(OPT_OUT, "Wants no campaigns; never remove without a request.", 1_300, SUPPORT, 363, leaving=0.02),
    Plan(
        "AVITO_AI_DESCRIPTIONS",
        "Lets a model draft the description of a listing.",
        900,
        GROWTH,
        120,
        rollouts=((112, 1), (98, 5), (84, 10), (49, 25), (14, 50)),
    ),
    Plan(
        "AVITO_NEW_CHECKOUT",
        "Pays in one step.",
        700,
        GROWTH,
        200,
        rollouts=((193, 0.5), (172, 5), (165, 2.5), (130, 20), (60, 100)),
    ),
    Plan(
        "AVITO_MAP_CLUSTERS",
        "Sees listings in groups on the map.",
        350,
        GROWTH,
        96,
        rollouts=((96, 2), (75, 10), (40, 33.33)),
    ),
    Plan(
        "AVITO_DARK_THEME",
        "Sees the dark theme without having chosen it; called off.",
        250,
        GROWTH,
        170,
        rollouts=((160, 5), (146, 15), (139, None)),
    ),
    Plan("AVITO_STORIES_FEED", "Sees stories of shops above the feed.", 200, GROWTH, 45, rollouts=((38, 1), (10, 3))),
    Plan("AVITO_BUYER_PROTECTION", "Gets the money back when a parcel does not come.", 950, GROWTH, 330),
    Plan("AVITO_SHOPS_BETA", "Runs a shop with a page of its own.", 880, SELLERS, 220, leaving=0.2),
    Plan("AVITO_FREE_LISTINGS_10", "Ten more free listings.", 850, SUPPORT, 345, (30, 60, 90)),
    Plan("AVITO_SLOW_RESPONDER", "Answers late: is offered automatic replies.", 800, GROWTH, 270, (30,), 0.15),
    Plan("AVITO_DISCOUNT_10_AUTO", "10 % off listings of cars.", 760, PRICING, 210, (14, 30)),
    Plan("AVITO_DISCOUNT_15_REALTY", "15 % off listings of flats.", 700, PRICING, 205, (30, 60)),
    Plan("AVITO_CALL_TRACKING", "Calls go through numbers of ours.", 650, SELLERS, 290),
    Plan("AVITO_MANUAL_REVIEW", "Each new listing is looked at by a person.", 620, RISK, 360, (30, 90), 0.2),
    Plan("AVITO_PHONE_HIDDEN", "The number is shown to verified users alone.", 600, SUPPORT, 335, leaving=0.15),
    Plan("AVITO_PAYOUT_HOLD", "Payouts wait for three days.", 540, RISK, 348, (5, 14), 0.3),
    Plan("AVITO_SUSPECTED_BOT", "Solves a captcha before each message.", 520, RISK, 352, (7, 30), 0.1),
    Plan("AVITO_FAMILY_ACCOUNT", "Shares an account with others of the family.", 480, GROWTH, 140),
    Plan("AVITO_ELDERLY_MODE", "Large letters and fewer buttons.", 450, SUPPORT, 240, leaving=0.05),
    Plan("AVITO_COURIER_PICKUP", "A courier fetches the parcel at home.", 430, GROWTH, 110),
    Plan("AVITO_RETURN_LABEL", "Prints labels for returns.", 400, GROWTH, 180),
    Plan("AVITO_SURVEY_SELLERS", "Was asked for an interview about selling.", 380, CRM, 230, (14,), 0.05, deleted=130),
    Plan("AVITO_TOP_REVIEWER", "Writes reviews that others find helpful.", 350, CRM, 300, leaving=0.05),
    Plan("AVITO_JOBS_QUICK_APPLY", "Applies for jobs with one touch.", 320, GROWTH, 85),
    Plan("AVITO_B2B_INVOICES", "Pays by invoice.", 300, SELLERS, 325, leaving=0.04),
    Plan("AVITO_VIP_SUPPORT", "Is answered by a person within five minutes.", 260, SUPPORT, 350, (90,), 0.05),
    Plan("AVITO_GIFT_CARDS", "May buy gift cards.", 220, GROWTH, 65),
    Plan("AVITO_GOODWILL_COUPON", "A coupon to make up for our mistake.", 210, SUPPORT, 315, (30,), 0.02),
    Plan("AVITO_EARLY_ACCESS", "Sees new features before all others.", 160, SUPPORT, 359, leaving=0.1),
    Plan("AVITO_PRESS", "Journalists: their requests go to the press office.", 60, SUPPORT, 330, leaving=0.02),
    Plan("AVITO_EMPLOYEES", "People who work here.", 45, SUPPORT, 363, leaving=0.15),
)
